"""What the record holds of the coordinators themselves, and how that is written.

| write | guard | what is written |
|---|---|---|
| `BeginTerm`, `EndTerm` | the leader's fence | who leads since when; terms of long ago are deleted |
| `TellNode`, `ForgetNode` | the node's record as seen | how a coordinator's machine is; it stays when the coordinator has gone |
| `Disable` | another coordinator is enabled | an operator wants the coordinator to take no work |
| `Enable` | – | nothing is left of that wish |
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, as_seen, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import DisabledRecord, NodeRecord, TermRecord
from dtf_lightning.farm.record.writes import LaneName


@dataclass(frozen=True, kw_only=True)
class BeginTerm:
    """Say that a leadership has begun. The verdict: whether it is said, from now or before."""

    epoch: int
    record: TermRecord
    fence: Compare
    forget: tuple[int, ...] = ()
    """Epochs of terms of long ago."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        term = keys.key(Kind.TERM, str(self.epoch))
        forget = (Delete(keys.key(Kind.TERM, str(one))) for one in self.forget)
        then: tuple[Put | Delete, ...] = (Put(term, encode(self.record)), *forget)
        return Guarded(f"begin the term {self.epoch}", (self.fence,), then, (term,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is said."""
        return outcome.applied or outcome.found[0] is not None


@dataclass(frozen=True, kw_only=True)
class EndTerm:
    """Say that a leadership ends, and why, before it does. The verdict: whether it is said."""

    epoch: int
    record: TermRecord
    fence: Compare
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        term = keys.key(Kind.TERM, str(self.epoch))
        return Guarded(f"end the term {self.epoch}", (self.fence,), (Put(term, encode(self.record)),), (term,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is said."""
        return outcome.applied


@dataclass(frozen=True, kw_only=True)
class TellNode:
    """Say how a coordinator's machine is. The verdict: whether it is said."""

    node: str
    record: NodeRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        node = keys.key(Kind.NODE, self.node)
        return Guarded(f"tell of {self.node}", (as_seen(node, self.seen),), (Put(node, encode(self.record)),), (node,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is said."""
        return outcome.applied


@dataclass(frozen=True, kw_only=True)
class ForgetNode:
    """Forget a coordinator that has gone long ago. The verdict: whether this forgot it."""

    node: str
    seen: int
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        node = keys.key(Kind.NODE, self.node)
        return Guarded(f"forget {self.node}", (as_seen(node, self.seen),), (Delete(node),), (node,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether this forgot it."""
        return outcome.applied


@dataclass(frozen=True, kw_only=True)
class Disable:
    """Take work away from a coordinator, while another one is enabled. The verdict: whether it is disabled."""

    node: str
    other: str
    """Which stays."""
    record: DisabledRecord
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        node, other = (keys.key(Kind.DISABLED, name) for name in (self.node, self.other))
        compares = (absent(other), absent(node))
        return Guarded(f"disable {self.node}", compares, (Put(node, encode(self.record)),), (node,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is disabled, from now or before."""
        return outcome.applied or outcome.found[0] is not None


@dataclass(frozen=True, kw_only=True)
class Enable:
    """Let a coordinator work again. The verdict: whether it was disabled."""

    node: str
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        node = keys.key(Kind.DISABLED, self.node)
        return Guarded(f"enable {self.node}", (present(node),), (Delete(node),), (node,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it was disabled, and this enabled it."""
        return outcome.applied
