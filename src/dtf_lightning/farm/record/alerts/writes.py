"""The guarded writes of incidents and silences. Pure.

| write | guard | what is written |
|---|---|---|
| `WriteIncident` | the record as seen; by a leader's decision also its fence | the incident, or nothing any more |
| `WriteSilence` | the record as seen | the silence, or nothing any more |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, as_seen
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.writes import LaneName, is_ours
from dtf_lightning.farm.rules.watching.incidents import Incident, Silence


@dataclass(frozen=True, kw_only=True)
class WriteIncident:
    """Change an incident, or forget it. The verdict: whether it is so; else it has changed meanwhile, or another leads."""

    incident: str
    """Its id."""
    record: Incident | None
    """As it is to be; `None`: it is forgotten."""
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    fence: Compare | None = None
    """Of the leadership that decided it; `None`: a person has asked for it."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.ALERT, self.incident)
        fence = () if self.fence is None else (self.fence,)
        put = Delete(key) if self.record is None else Put(key, encode(self.record))
        return Guarded(f"incident {self.incident}", (*fence, as_seen(key, self.seen)), (put,), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is written, from now or before."""
        if self.record is None:
            return outcome.applied or outcome.found[0] is None
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class WriteSilence:
    """Say nothing of some alerts for a while, or say it again. The verdict: whether it is so."""

    silence: str
    """Its id."""
    record: Silence | None
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.SILENCE, self.silence)
        put = Delete(key) if self.record is None else Put(key, encode(self.record))
        return Guarded(f"silence {self.silence}", (as_seen(key, self.seen),), (put,), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is written, from now or before."""
        if self.record is None:
            return outcome.applied or outcome.found[0] is None
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)
