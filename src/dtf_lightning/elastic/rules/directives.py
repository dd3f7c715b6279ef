"""The events that a run's leader receives, the directives that it publishes, and its decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.errors import ProtocolError


class DirectiveKind(Enum):
    PREPARE = "prepare"  # every worker says at which boundary it is
    STOP = "stop"  # every worker stops at this boundary, then says that it is ready (or leaves)
    FAIL = "fail"  # the generation is broken: every worker unwinds now, then says that it is ready
    FINISH = "finish"  # all members came to the end of training: every worker ends
    ABORT = "abort"  # too many failures: every worker raises


@dataclass(frozen=True, kw_only=True)
class Directive:
    """What the leader asks of every node on the way to generation `target`; stored under one etcd key."""

    kind: DirectiveKind
    target: int
    """The number of the generation that comes next, for every kind of directive."""
    epoch: int = 0
    reason: str = ""
    boundary: int = 0
    """STOP: the step boundary of the running generation at which every worker stops."""
    leaving: tuple[str, ...] = ()
    """Ids of the members that leave at the boundary instead of saying that they are ready."""
    leaves_nobody: bool = False
    """STOP: no member stays."""
    failed: tuple[str, ...] = ()
    """FAIL: ids of the members that are out. A node that finds its own id here ends its workers."""
    departed: tuple[str, ...] = ()
    """FAIL: ids of members that are out without having failed (left, died while draining or after having finished)."""
    suspects: tuple[str, ...] = ()
    """FAIL: ids of members that reported the generation as broken while nobody was known to be dead. They live on."""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["kind"] = self.kind.value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Directive:
        """Return the directive that `to_json` wrote. Raises `ProtocolError` for anything else."""
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
    """No record has changed, but a deadline may have passed."""


Event = NodeChanged | NodeGone | TimePassed


# --- decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The leader has nothing to do before `until` (monotonic seconds; `None`: before the next event)."""

    reason: str
    until: float | None = None
    paused: bool = False
    """Fewer than `min_nodes` nodes are ready: nobody trains until more come."""


@dataclass(frozen=True, kw_only=True)
class Publish:
    """The driver writes this directive to etcd, fenced by the leader's epoch."""

    directive: Directive
    reason: str


@dataclass(frozen=True, kw_only=True)
class Form:
    """The driver writes this generation to etcd, fenced by the leader's epoch."""

    generation: Generation
    reason: str


Decision = Wait | Publish | Form
