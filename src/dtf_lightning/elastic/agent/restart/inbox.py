"""The events that only the loop of a restart agent handles."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from dtf_lightning.elastic.agent.inbox import AgentEvent
from dtf_lightning.elastic.rules.generation import Generation


@dataclass(frozen=True)
class RoundAsked(AgentEvent):
    """torchelastic asks for a round, its workers having stopped; `reply` is set once there is one with this node in it."""

    reply: Future[Generation]
    store_port: int


@dataclass(frozen=True)
class WorkerFailed(AgentEvent):
    """The process of a worker has ended with another exit code than 0."""

    pid: int
    local_rank: int
    cause: str


@dataclass(frozen=True)
class WorkersFinished(AgentEvent):
    """All workers of this node have ended with exit code 0."""
