"""What a live agent's loop consumes besides the events of every agent: its workers' words, and what torchelastic asks."""

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
class WorkerGone(AgentEvent):
    """End of file, or the end of the process."""

    connection: int
    cause: str


@dataclass(frozen=True)
class IncarnationAsked(AgentEvent):
    """torchelastic wants to start the workers; `reply` is set once they may start, or are known not to."""

    reply: Future[None]


@dataclass(frozen=True)
class WorkersToEnd(AgentEvent):
    """End this node's workers at once."""

    reason: str
