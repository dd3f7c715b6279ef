"""The guarded writes of secrets. Pure.

| write | guard | what is written |
|---|---|---|
| `SetSecret` | the record as seen | a sealed value |
| `RemoveSecret` | the record as seen | it is gone |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.secrets.values import SecretRecord
from dtf_lightning.farm.record.writes import LaneName, is_ours


@dataclass(frozen=True, kw_only=True)
class SetSecret:
    """Set a secret. The verdict: whether it is set so, from now or before."""

    project: str
    name: str
    record: SecretRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SECRET, self.project, self.name)
        return Guarded(f"set {self.name}", (as_seen(key, self.seen),), (Put(key, encode(self.record)),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is set so."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class RemoveSecret:
    """Remove a secret. The verdict: whether it is gone."""

    project: str
    name: str
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SECRET, self.project, self.name)
        return Guarded(f"remove {self.name}", (as_seen(key, self.seen),), (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is gone, from now or before."""
        return outcome.applied or outcome.found[0] is None
