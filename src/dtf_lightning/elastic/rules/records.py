"""The record that a node keeps of itself in etcd, and which of its states may follow which.

Rules that this file guards:

* states change along `WORKER_TRANSITIONS` only; a reader may miss some of them (a watch that re-reads the keys sees the
  last record alone), so any state that the table reaches in several steps is accepted;
* `failed` and `left` end an incarnation: its id never comes back;
* an incarnation's number of workers is fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from dtf_lightning.elastic.rules.generation import Member
from dtf_lightning.errors import ProtocolError


class WorkerState(Enum):
    """The state of a node's group of workers."""

    JOINING = "joining"  # the agent has registered, its workers set themselves up
    SYNCING = "syncing"  # ready for a generation, or receiving its state
    ACTIVE = "active"  # training in a generation
    DRAINING = "draining"  # asked to leave at the next agreed boundary
    FAILED = "failed"  # this incarnation died
    LEFT = "left"  # this incarnation left by agreement, or finished


WORKER_TRANSITIONS: Mapping[WorkerState, frozenset[WorkerState]] = {
    WorkerState.JOINING: frozenset({WorkerState.SYNCING, WorkerState.DRAINING, WorkerState.FAILED, WorkerState.LEFT}),
    WorkerState.SYNCING: frozenset({WorkerState.ACTIVE, WorkerState.DRAINING, WorkerState.FAILED, WorkerState.LEFT}),
    WorkerState.ACTIVE: frozenset({WorkerState.SYNCING, WorkerState.DRAINING, WorkerState.FAILED, WorkerState.LEFT}),
    # A leaver that a failure overtakes unwinds with the others and enters one more generation.
    WorkerState.DRAINING: frozenset({WorkerState.SYNCING, WorkerState.FAILED, WorkerState.LEFT}),
    WorkerState.FAILED: frozenset(),
    WorkerState.LEFT: frozenset(),
}

ENDED = frozenset({WorkerState.FAILED, WorkerState.LEFT})


def reachable(state: WorkerState) -> frozenset[WorkerState]:
    """Return every state that may follow `state` in one step or more, and `state` itself."""
    found = {state}
    frontier = [state]
    while frontier:
        for following in WORKER_TRANSITIONS[frontier.pop()] - found:
            found.add(following)
            frontier.append(following)
    return frozenset(found)


_REACHABLE = {state: reachable(state) for state in WorkerState}


class IllegalTransition(ProtocolError):
    """Raised for a state that follows one that it may not follow. The message prints the history that led there."""

    def __init__(self, who: str, what: str, allowed: str, history: tuple[str, ...]) -> None:
        super().__init__(
            f"{who}: {what} is not allowed ({allowed}); history, oldest first: {' -> '.join(history) or 'none'}"
        )
        self.history = history


@dataclass(frozen=True, kw_only=True)
class NodeRecord:
    """What a node says of itself: one etcd key under the node's lease, always rewritten as a whole."""

    node: str
    host: str
    num_workers: int
    """The number of workers on the node (its local world size)."""
    incarnation: int = 1
    state: WorkerState = WorkerState.JOINING
    store_port: int = 0
    """The port of the agent's TCPStore, which may host a generation."""
    mesh_port: int = 0
    """The port to which other nodes' agents connect, so that they notice this agent's death."""
    order: int = 0
    """The node's place in the order of arrival: its key's create revision. Filled in by the reader, not written."""
    instance: str = ""
    """The run instance that the node has been admitted to (its fingerprint was compared); empty until then."""
    generation: int = 0
    """The last generation that all the node's workers have been handed; 0 before each incarnation's first."""
    ready_after: int | None = None
    """All the node's workers are unwound and wait for a generation above this number; `None` while they do not.

    A newcomer writes 0. A member that answers FAIL or STOP for target t writes t - 1, also when its workers had not
    been handed generation t - 1 yet and have nothing to unwind.
    """
    boundary: tuple[int, int] | None = None
    """(target, boundary): the furthest step boundary of the node's workers, in answer to PREPARE for `target`."""
    suspect: int = 0
    """The generation that one of the node's workers reports as broken; 0 for none."""
    leaving: bool = False
    pressed: bool = False
    """It leaves, and its grace period is too far gone to wait for a node that would take its state over."""
    witnessed: str = ""
    """The run's instance of which this node has seen a living member: it goes on while such a node is there."""
    trained: bool = False
    """The node's workers hold, or held, a state of this run in which an optimizer step is made."""
    finished: int = 0
    """The generation in which all the node's workers came to the end of training; 0 while they have not."""
    rank_zero: bool = False
    """The node's first worker is rank zero in set-up; it is rank zero of the first generation, too."""
    aftermath: bool = False
    """Its workers failed because another member's death has left one of them in a wait that nothing ends."""
    stopped: tuple[int, int] | None = None
    """(generation, batches): how many of its batches that worker of the node had begun that left the training loop first."""
    stopped_why: str = ""
    """Which worker that was, at which step and why, for people."""
    passed: tuple[int, int] | None = None
    """(generation, batches): how many the furthest of the node's workers has begun, while any member of the run has `stopped`."""
    detail: str = ""
    """Why the node is in this state, for people: an error's first line, `SIGTERM`, ..."""

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
        """Return the record that `to_json` wrote. Raises `ProtocolError` for anything else."""
        try:
            fields = dict(data)
            fields["state"] = WorkerState(fields["state"])
            for name in ("boundary", "stopped", "passed"):
                if fields.get(name) is not None:
                    number, boundary = fields[name]
                    fields[name] = (int(number), int(boundary))
            return cls(**fields, order=order)
        except (TypeError, ValueError, KeyError) as error:
            raise ProtocolError(
                f"expected a node's record, got {data!r} ({error}); do all nodes run the same dtf-lightning?"
            ) from error


_TRAIL_LENGTH = 12


def follow(trail: tuple[str, ...], known: NodeRecord | None, record: NodeRecord) -> tuple[str, ...]:
    """Return the incarnation's history with `record` behind it; `known` is its latest record so far.

    Raises `IllegalTransition` if `record` may not follow `known`.
    """
    if known is not None and record.state not in _REACHABLE[known.state]:
        allowed = ", ".join(sorted(state.value for state in _REACHABLE[known.state] - {known.state})) or "nothing"
        raise IllegalTransition(
            record.member_id,
            f"{known.state.value} -> {record.state.value}",
            f"{known.state.value} may be followed by {allowed}",
            trail,
        )
    if known is not None and record.num_workers != known.num_workers:
        raise IllegalTransition(
            record.member_id,
            f"a change from {known.num_workers} to {record.num_workers} workers",
            "an incarnation's number of workers is fixed",
            trail,
        )
    if known is not None and record.state is known.state:
        return trail
    word = record.state.value + (f" ({record.detail})" if record.detail else "")
    return (*trail, word)[-_TRAIL_LENGTH:]
