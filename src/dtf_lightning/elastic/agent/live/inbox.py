"""The events that only a live agent's loop handles: messages of its workers, and requests of torchelastic."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from dtf_lightning.elastic.agent.inbox import AgentEvent
from dtf_lightning.elastic.link.messages import Message


@dataclass(frozen=True)
class WorkerSaid(AgentEvent):
    """A worker sent a message."""

    connection: int
    message: Message


@dataclass(frozen=True)
class WorkerEnding(AgentEvent):
    """A worker's process is ending: its memory is being freed, and `WorkerGone` follows."""

    connection: int


@dataclass(frozen=True)
class WorkerGone(AgentEvent):
    """A worker's socket is at its end, or its process has ended."""

    connection: int
    cause: str


@dataclass(frozen=True)
class IncarnationAsked(AgentEvent):
    """torchelastic wants to start the workers; `reply` is set once it may, or once the run is known to be over for it."""

    reply: Future[None]


@dataclass(frozen=True)
class WorkersToEnd(AgentEvent):
    """This node's workers are to be ended at once."""

    reason: str
