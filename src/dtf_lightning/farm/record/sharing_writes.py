"""The write of a project's or a licence's record, as an operator sets it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import LicenceRecord, ProjectRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetShare:
    """Write a project or a licence, guarded by its record as seen. The verdict: whether it is there, from now or before."""

    kind: Kind
    """`PROJECT` or `LICENCE`."""
    name: str
    record: ProjectRecord | LicenceRecord
    seen: int
    """The mod revision of the record; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the head of this file."""
        key = keys.key(self.kind, self.name)
        put = Put(key, encode(self.record))
        return Guarded(f"set {self.name}", (as_seen(key, self.seen),), (put,), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the record is there as it was to be."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)
