"""The write of the leader that scales; workers are let go by `recovery.writes`. Pure.

| write | guard | what is written |
|---|---|---|
| `SetPool` | the leader's fence, the record as seen | what is asked for, was done and was spent |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.scaling.values import PoolRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetPool:
    """Write a pool's record. The verdict: whether that is written; else it has changed, or another coordinator leads."""

    pool: str
    record: PoolRecord
    """As it is to be."""
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SCALING, self.pool)
        put = Put(key, encode(self.record))
        return Guarded(f"scale {self.pool}", (self.fence, as_seen(key, self.seen)), (put,), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is written, from now or before."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)
