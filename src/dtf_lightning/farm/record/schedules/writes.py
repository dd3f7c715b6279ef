"""The guarded writes of schedules. Pure.

| write | guard | what is written |
|---|---|---|
| `SetSchedule` | the schedule as seen | what somebody wants of it: its plan and times, that it is paused, a run by hand |
| `RemoveSchedule` | the schedule as seen | nothing is left of it; its runs go on |
| `DecideRun` | the leader's fence, the schedule as seen | a time is decided on, and with it the id of the plan that is submitted |

Rules:
- What is submitted for a time is said in the record before the first task is: whoever leads next goes on with the same ids, so
  that each task of a run is submitted once, over any number of deaths.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.record.task_id import derived_task_id, new_task_id
from dtf_lightning.farm.record.writes import LaneName, is_ours


def run_id(schedule: str, time: float, decided: float) -> str:
    """Return the id of the plan that a schedule submits for a time; it carries when that was decided."""
    digest = hashlib.sha256(f"{schedule}\0{time!r}".encode()).digest()
    return derived_task_id(new_task_id(decided, 0), int.from_bytes(digest))


@dataclass(frozen=True, kw_only=True)
class SetSchedule:
    """Write a schedule as somebody wants it. The verdict: whether it is there so, from now or before."""

    name: str
    record: ScheduleRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SCHEDULE, self.name)
        return Guarded(
            f"set the schedule {self.name}", (as_seen(key, self.seen),), (Put(key, encode(self.record)),), (key,)
        )

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class RemoveSchedule:
    """Forget a schedule. The verdict: whether it is gone."""

    name: str
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SCHEDULE, self.name)
        return Guarded(f"remove the schedule {self.name}", (as_seen(key, self.seen),), (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is gone, from now or before."""
        return outcome.applied or outcome.found[0] is None


@dataclass(frozen=True, kw_only=True)
class DecideRun:
    """Decide on a time, as the leader. The verdict: whether it is decided so, from now or before."""

    name: str
    record: ScheduleRecord
    """With the run."""
    seen: int
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SCHEDULE, self.name)
        compares = (self.fence, as_seen(key, self.seen))
        return Guarded(f"decide on a run of {self.name}", compares, (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is decided so."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)
