"""Who is here: events in, one decision out, with its reason. (Contract; see the task text.)"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

from dtf_lightning.elastic.generation import Failure, Generation, Member


class WorkerState(Enum):
    """State of a node's group of workers."""

    JOINING = "joining"  # the agent is here, its workers set themselves up
    SYNCING = "syncing"  # ready for a generation, or receiving its state
    ACTIVE = "active"  # training in a generation
    DRAINING = "draining"  # asked to leave at the next agreed boundary
    FAILED = "failed"  # this incarnation died
    LEFT = "left"  # this incarnation left by agreement, or finished


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What a node says of itself: one etcd key under the node's lease, rewritten as a whole."""

    node: str
    host: str
    num_workers: int
    """Local world size."""
    incarnation: int = 1
    state: WorkerState = WorkerState.JOINING
    store_port: int = 0
    """The agent's TCPStore, which may host a generation."""
    mesh_port: int = 0
    """Where peers' agents connect to notice this agent's death."""
    order: int = 0
    """The create revision of the key: the order of arrival. Filled in by the reader, not written."""
    instance: str = ""
    """The run instance the node has been admitted to (fingerprint compared); empty until then."""
    generation: int = 0
    """The last generation that all the node's workers have been handed; 0 before the first."""
    ready_after: int | None = None
    """All its workers are unwound and wait for a generation above this number; `None` while they do not."""
    boundary: tuple[int, int] | None = None
    """(target, boundary): the furthest step boundary of its workers, answering the prepare for `target`."""
    suspect: int = 0
    """The generation that one of its workers reports as broken; 0 for none."""
    leaving: bool = False
    finished: int = 0
    """The generation in which all its workers came to the end of training; 0 while they have not."""
    detail: str = ""
    """Why it is in this state, for people: an error's first line, `SIGTERM`, ..."""

    @property
    def member_id(self) -> str:
        return f"{self.node}#{self.incarnation}"

    def member(self) -> Member:
        return Member(node=self.node, incarnation=self.incarnation, num_workers=self.num_workers, host=self.host)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["state"] = self.state.value
        del data["order"]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, order: int = 0) -> NodeRecord:
        fields = dict(data)
        fields["state"] = WorkerState(fields["state"])
        if fields.get("boundary") is not None:
            fields["boundary"] = tuple(fields["boundary"])
        return cls(**fields, order=order)


class DirectiveKind(Enum):
    PREPARE = "prepare"  # say at which boundary you are
    STOP = "stop"  # stop at this boundary, then say ready (or leave)
    FAIL = "fail"  # the generation is broken: unwind now, then say ready
    FINISH = "finish"  # all came to the end of training: go home
    ABORT = "abort"  # too many failures: everybody raises


@dataclass(frozen=True, kw_only=True)
class Directive:
    """What the coordinator asks of every node on the way to generation `target`. One etcd key."""

    kind: DirectiveKind
    target: int
    epoch: int = 0
    reason: str = ""
    boundary: int = 0
    """STOP: the step boundary of the running generation at which every worker stops."""
    leaving: tuple[str, ...] = ()
    """Member ids that leave at the boundary instead of saying ready."""
    failed: tuple[str, ...] = ()
    """FAIL: member ids that are out. A node that finds its own here ends its workers."""

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["kind"] = self.kind.value
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Directive:
        fields = dict(data)
        fields["kind"] = DirectiveKind(fields["kind"])
        fields["leaving"] = tuple(fields.get("leaving", ()))
        fields["failed"] = tuple(fields.get("failed", ()))
        return cls(**fields)


# --- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeChanged:
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


@dataclass(frozen=True, kw_only=True)
class MembershipState:
    """To be designed by the core's author."""

    generation: Generation = field(default_factory=lambda: Generation(number=0))
    nodes: Mapping[str, NodeRecord] = field(default_factory=dict)
    failures: tuple[Failure, ...] = ()
