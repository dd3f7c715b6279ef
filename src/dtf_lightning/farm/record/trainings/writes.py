"""The writes by which a training's parts are asked for their devices. Pure.

| write | guard | what is written |
|---|---|---|
| `AskToYield` | the leader's fence, the attempt as seen, an older request as seen | the request |
| `ForgetYield` | the leader's fence, the request as seen | nothing is left of the request, whose training is gone |
| `NoteBorrowings` | the leader's fence, the training is there, its borrowings and requests as seen | the borrowings; the requests whose attempts are over are deleted |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import Borrowings, YieldRequest
from dtf_lightning.farm.record.writes import Decision, LaneName, is_ours, leads


@dataclass(frozen=True, kw_only=True)
class AskToYield:
    """Ask for the device of an attempt, which `request.revision` names."""

    task: str
    request: YieldRequest
    seen: int
    """The mod revision of an older request; 0 if there is none."""
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        attempt, asked = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.YIELD, self.task)
        compares = (self.fence, as_seen(attempt, self.request.revision), as_seen(asked, self.seen))
        put = Put(asked, encode(self.request))
        return Guarded(f"ask {self.task} to yield", compares, (put,), (self.fence.key, asked))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return _decided(outcome, self.fence, not outcome.applied and is_ours(outcome, outcome.found[1], self.request))


@dataclass(frozen=True, kw_only=True)
class ForgetYield:
    """Delete a request whose attempt is over."""

    task: str
    seen: int
    """The mod revision of the request."""
    fence: Compare
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        asked = keys.key(Kind.YIELD, self.task)
        compares = (self.fence, as_seen(asked, self.seen))
        return Guarded(f"forget the request to {self.task}", compares, (Delete(asked),), (self.fence.key, asked))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return _decided(outcome, self.fence, not outcome.applied and outcome.found[1] is None)


@dataclass(frozen=True, kw_only=True)
class NoteBorrowings:
    """Note which devices a training gave back, and which of its parts are back."""

    training: str
    borrowings: Borrowings
    seen: int
    """The mod revision of what is noted; 0 if nothing is."""
    over: tuple[tuple[str, int], ...]
    """Parts whose requests are over, and the mod revisions of these."""
    fence: Compare
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        noted = keys.key(Kind.BORROWINGS, self.training)
        asked = [(keys.key(Kind.YIELD, part), seen) for part, seen in self.over]
        compares = (
            self.fence,
            present(keys.key(Kind.TASK, self.training)),
            as_seen(noted, self.seen),
            *(as_seen(key, seen) for key, seen in asked),
        )
        put = Put(noted, encode(self.borrowings))
        deletes = (Delete(key) for key, _ in asked)
        return Guarded(f"borrowings of {self.training}", compares, (put, *deletes), (self.fence.key, noted))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return _decided(
            outcome, self.fence, not outcome.applied and is_ours(outcome, outcome.found[1], self.borrowings)
        )


def _decided(outcome: Outcome, fence: Compare, is_there: object) -> Decision:
    if outcome.applied or is_there:
        return Decision.MADE
    return Decision.CHANGED if leads(outcome.found[0], fence) else Decision.DEPOSED
