"""The write that ends a task by a result that is known already. Pure.

| write | guard | what is written |
|---|---|---|
| `Reuse` | the leader's fence, the task is there, it has no attempt and no result | the result; the task is deleted |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.record.writes import Decision, LaneName, is_ours, leads


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """End a task that was never tried by another one's result, which `envelope.reused_from` names."""

    task: str
    envelope: Envelope
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.RESULT

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        assert self.envelope.outcome is TaskOutcome.COMPLETED, self.task
        assert self.envelope.reused_from, self.task
        assert not self.envelope.revision, self.task
        task, attempt, done = (keys.key(kind, self.task) for kind in (Kind.TASK, Kind.ATTEMPT, Kind.DONE))
        compares = (self.fence, present(task), absent(attempt), absent(done))
        then = (Put(done, encode(self.envelope)), Delete(task))
        return Guarded(f"reuse a result for {self.task}", compares, then, (self.fence.key, done, task))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        if outcome.applied:
            return Decision.MADE
        leader, done, task = outcome.found
        if is_ours(outcome, done, self.envelope):
            return Decision.MADE
        if task is None:
            return Decision.GONE
        return Decision.CHANGED if leads(leader, self.fence) else Decision.DEPOSED
