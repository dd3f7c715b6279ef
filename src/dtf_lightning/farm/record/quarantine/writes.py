"""The guarded writes of quarantines. Pure.

| write | guard | what is written |
|---|---|---|
| `SetQuarantine` | the record as seen | a test may fail until then |
| `RemoveQuarantine` | the record as seen | it counts again |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetQuarantine:
    """Put a test into quarantine, or change how. The verdict: whether it is there so, from now or before."""

    project: str
    test: str
    record: QuarantineRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.QUARANTINE, self.project, self.test)
        return Guarded(f"quarantine {self.test}", (as_seen(key, self.seen),), (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class RemoveQuarantine:
    """Let a test count again. The verdict: whether it does."""

    project: str
    test: str
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.QUARANTINE, self.project, self.test)
        return Guarded(f"release {self.test}", (as_seen(key, self.seen),), (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is gone, from now or before."""
        return outcome.applied or outcome.found[0] is None
