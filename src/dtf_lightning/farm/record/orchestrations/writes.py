"""The guarded writes of jobs that are split over devices. Pure.

| write | guard | what is written |
|---|---|---|
| `SetOrchestration` | the record as seen; of a leader's also its fence | a job as it is accepted or cancelled; what a leader notes of its subtasks |
| `ForgetOrchestration` | the leader's fence, the record as seen | nothing is left of it; what its subtasks gave stays among the results |

Rules:
- A job is in the record before the first of its subtasks is: whoever leads next goes on with the same ids.
- What a leader notes can always be found out anew from the subtasks: a note that is lost costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetOrchestration:
    """Write a job. The verdict: whether it is there so, from now or before."""

    name: str
    record: OrchestrationRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    fence: Compare | None = None
    """Of the leadership that decided it; `None`: no leader did."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.ORCHESTRATION, self.name)
        compares = (as_seen(key, self.seen),) if self.fence is None else (self.fence, as_seen(key, self.seen))
        return Guarded(f"set the job {self.name}", compares, (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class ForgetOrchestration:
    """Forget a job that has ended. The verdict: whether it is gone."""

    name: str
    seen: int
    fence: Compare
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.ORCHESTRATION, self.name)
        compares = (self.fence, as_seen(key, self.seen))
        return Guarded(f"forget the job {self.name}", compares, (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is gone, from now or before."""
        return outcome.applied or outcome.found[0] is None
