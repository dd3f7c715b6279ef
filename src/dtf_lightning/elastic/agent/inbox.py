"""What every agent's loop consumes: one typed event for everything that another thread has seen.

Reader threads (etcd watch, mesh, torchelastic's main thread) only put these into the loop's queue; all state belongs to
the loop. What comes from workers, and what torchelastic asks, differs by mode: `live/inbox.py`, `restart/inbox.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dtf_lightning.etcd.session import StoreChanged, StoreSnapshot, WriteDone


class AgentEvent:
    """An event that is no news from etcd."""


InboxEvent = StoreSnapshot | StoreChanged | WriteDone | AgentEvent

Push = Callable[[InboxEvent], None]


# --- from peers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerDead(AgentEvent):
    """The peer's process is gone: its end of the link closed and its port refuses."""

    node: str
    cause: str


@dataclass(frozen=True)
class PeerAnswered(AgentEvent):
    """The peer answered a probe."""

    node: str


# --- from torchelastic's main thread ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkersStarting(AgentEvent):
    """torchelastic starts this node's workers, this many."""

    num_workers: int


@dataclass(frozen=True)
class LeaveAsked(AgentEvent):
    """This node is to leave the run."""

    reason: str
    within: float | None = None
    """Seconds that are left, where they are known: they may be fewer than `grace_period`."""


@dataclass(frozen=True)
class CloseAsked(AgentEvent):
    """The loop ends."""
