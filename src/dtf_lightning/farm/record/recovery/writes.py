"""The write by which a farm cordons or drains a worker by itself. Pure.

| write | guard | what is written |
|---|---|---|
| `ChangeWorkerByFarm` | the leader's fence, the worker's record as seen | the record, cordoned with when and why, or draining |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import WorkerRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class ChangeWorkerByFarm:
    """Cordon or drain a worker. The verdict: whether that is written; else the worker has changed, or another coordinator leads."""

    worker: str
    what: str
    """What is done to it, for errors: `cordon`."""
    record: WorkerRecord
    """As it is to be."""
    seen: int
    """The mod revision of the record as seen."""
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        worker = keys.key(Kind.WORKER, self.worker)
        put = Put(worker, encode(self.record))
        return Guarded(f"{self.what} {self.worker}", (self.fence, as_seen(worker, self.seen)), (put,), (worker,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is written, from now or before."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)
