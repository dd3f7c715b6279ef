"""What a restart agent's loop consumes besides the events of every agent."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from dtf_lightning.elastic.agent.inbox import AgentEvent
from dtf_lightning.elastic.rules.generation import Generation


@dataclass(frozen=True)
class RoundAsked(AgentEvent):
    """torchelastic's workers are stopped; `reply` is set once there is a round with this node in it."""

    reply: Future[Generation]
    store_port: int


@dataclass(frozen=True)
class WorkerFailed(AgentEvent):
    """A worker's process ended, and not with exit code 0."""

    pid: int
    local_rank: int
    cause: str


@dataclass(frozen=True)
class WorkersFinished(AgentEvent):
    """All workers of this node ended well."""
