"""The events that the loop of every agent handles: one typed event for everything that another thread has seen.

Reader threads (etcd watch, mesh, torchelastic's main thread) only put these into the loop's queue; all state belongs to
the loop. What comes from workers, and what torchelastic asks, differs by mode: `live/inbox.py`, `restart/inbox.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dtf_lightning.etcd.session import StoreChanged, StoreSnapshot, WriteDone


class AgentEvent:
    """The base of all events that do not come from etcd."""


InboxEvent = StoreSnapshot | StoreChanged | WriteDone | AgentEvent

Push = Callable[[InboxEvent], None]


# --- from peers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerDead(AgentEvent):
    """The process of a peer's agent is gone: its end of the link is closed and its port refuses connections."""

    node: str
    cause: str


@dataclass(frozen=True)
class PeerAnswered(AgentEvent):
    """A peer's agent has answered a probe."""

    node: str


# --- from torchelastic's main thread ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkersStarting(AgentEvent):
    """torchelastic starts `num_workers` workers of this node."""

    num_workers: int


@dataclass(frozen=True)
class LeaveAsked(AgentEvent):
    """Somebody has asked this node to leave the run."""

    reason: str
    within: float | None = None
    """The seconds that are left, where they are known: they may be fewer than `grace_period`."""


@dataclass(frozen=True)
class CloseAsked(AgentEvent):
    """The agent's loop is to end."""
