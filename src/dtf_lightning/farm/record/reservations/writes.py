"""The guarded writes of reservations. Pure.

| write | guard | what is written |
|---|---|---|
| `SetReservation` | no record of this name | workers are reserved |
| `RemoveReservation` | the record is there | they are not |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetReservation:
    """Reserve workers. The verdict: whether that is written, from now or before."""

    name: str
    record: ReservationRecord
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.RESERVATION, self.name)
        return Guarded(f"reserve {self.name}", (absent(key),), (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class RemoveReservation:
    """Forget a reservation. The verdict: whether it was there; also where that cannot be told."""

    name: str
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.RESERVATION, self.name)
        return Guarded(f"unreserve {self.name}", (present(key),), (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it was removed."""
        return outcome.applied or outcome.unsure
