"""What the agent's loop thread consumes: one typed event for everything that another thread has seen.

Reader threads (etcd watch, worker sockets, mesh, torchelastic's main thread) only put these into the loop's queue; all
state belongs to the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.elastic.link.messages import Message
from dtf_lightning.etcd.store import Compare, Delete, Put, RangeResult, WatchEvent

OWN_LEASE = -1
"""Stands in a `Put` for the session's lease, which may be another by the time the write is made."""


class WriteOutcome(Enum):
    APPLIED = "applied"
    REFUSED = "refused"  # a compare did not hold
    UNKNOWN = "unknown"  # etcd did not answer; it may or may not have been applied


@dataclass(frozen=True, kw_only=True)
class Write:
    """One transaction for the publisher's thread, tried once."""

    label: str
    compares: tuple[Compare, ...]
    puts: tuple[Put | Delete, ...]


# --- from etcd -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoreSnapshot:
    result: RangeResult


@dataclass(frozen=True)
class StoreChanged:
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True)
class WriteDone:
    write: Write
    outcome: WriteOutcome


# --- from workers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkerSaid:
    connection: int
    message: Message


@dataclass(frozen=True)
class WorkerGone:
    """End of file, or the end of the process."""

    connection: int
    cause: str


# --- from peers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerDead:
    """The peer's process is gone: its end of the link closed and its port refuses."""

    node: str
    cause: str


@dataclass(frozen=True)
class PeerAnswered:
    """The peer answered a probe."""

    node: str


# --- from torchelastic's main thread ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class IncarnationAsked:
    """torchelastic wants to start the workers; `reply` is set once they may start, or told why not."""

    reply: Future[None]


@dataclass(frozen=True)
class WorkersStarting:
    """torchelastic starts this node's workers, this many: a new incarnation."""

    num_workers: int


@dataclass(frozen=True)
class LeaveAsked:
    reason: str
    within: float | None = None
    """Seconds that are left, where they are known: they may be fewer than `grace_period`."""


@dataclass(frozen=True)
class WorkersToEnd:
    """End this node's workers at once."""

    reason: str


@dataclass(frozen=True)
class CloseAsked:
    """The loop ends."""


InboxEvent = (
    StoreSnapshot
    | StoreChanged
    | WriteDone
    | WorkerSaid
    | WorkerGone
    | PeerDead
    | PeerAnswered
    | IncarnationAsked
    | WorkersStarting
    | LeaveAsked
    | WorkersToEnd
    | CloseAsked
)

Push = Callable[[InboxEvent], None]
