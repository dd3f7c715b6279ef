"""What the leader hears and what it says: events, directives, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.errors import ProtocolError


class DirectiveKind(Enum):
    PREPARE = "prepare"  # say at which boundary you are
    STOP = "stop"  # stop at this boundary, then say ready (or leave)
    FAIL = "fail"  # the generation is broken: unwind now, then say ready
    FINISH = "finish"  # all came to the end of training: go home
    ABORT = "abort"  # too many failures: everybody raises


@dataclass(frozen=True, kw_only=True)
class Directive:
    """What the leader asks of every node on the way to generation `target`. One etcd key."""

    kind: DirectiveKind
    target: int
    """The number of the generation that comes next, for every kind."""
    epoch: int = 0
    reason: str = ""
    boundary: int = 0
    """STOP: the step boundary of the running generation at which every worker stops."""
    leaving: tuple[str, ...] = ()
    """Member ids that leave at the boundary instead of saying ready."""
    failed: tuple[str, ...] = ()
    """FAIL: member ids that are out. A node that finds its own here ends its workers."""
    departed: tuple[str, ...] = ()
    """FAIL: member ids that are out without being a failure (left, died while draining or after having finished)."""
    suspects: tuple[str, ...] = ()
    """FAIL: member ids that reported the generation as broken while nobody was known to be dead. They live on."""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["kind"] = self.kind.value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Directive:
        """The directive that `to_json` wrote. Raises `ProtocolError` for anything else."""
        try:
            fields = dict(data)
            fields["kind"] = DirectiveKind(fields["kind"])
            for name in ("leaving", "failed", "departed", "suspects"):
                fields[name] = tuple(fields.get(name, ()))
            return cls(**fields)
        except (TypeError, ValueError, KeyError) as error:
            raise ProtocolError(
                f"expected a directive, got {data!r} ({error}); do all nodes run the same dtf-lightning?"
            ) from error


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeChanged:
    """A node's record was written."""

    record: NodeRecord


@dataclass(frozen=True)
class NodeGone:
    """The node's key is gone: lease lost and mesh down, evicted by a peer, or deleted by itself on leaving."""

    node: str
    cause: str


@dataclass(frozen=True)
class TimePassed:
    """Nothing happened; a deadline may have passed."""


Event = NodeChanged | NodeGone | TimePassed


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do before `until` (monotonic seconds; `None`: before the next event)."""

    reason: str
    until: float | None = None
    paused: bool = False
    """Below `min_nodes`: nobody trains until more come."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """Write this directive (fenced)."""

    directive: Directive
    reason: str


@dataclass(frozen=True, kw_only=True)
class Form:
    """Write this generation (fenced)."""

    generation: Generation
    reason: str


Decision = Wait | Publish | Form
