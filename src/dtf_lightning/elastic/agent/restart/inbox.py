"""What the restart agent's loop consumes besides the events of live mode."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from dtf_lightning.elastic.agent.inbox import InboxEvent
from dtf_lightning.elastic.rules.generation import Generation


@dataclass(frozen=True)
class RoundAsked:
    """torchelastic's workers are stopped; `reply` is set once there is a round with this node in it."""

    reply: Future[Generation]
    store_port: int


@dataclass(frozen=True)
class WorkersStarting:
    num_workers: int


@dataclass(frozen=True)
class WorkerFailed:
    pid: int
    local_rank: int
    cause: str


@dataclass(frozen=True)
class WorkersFinished:
    """All workers of this node ended well."""


RestartEvent = InboxEvent | RoundAsked | WorkersStarting | WorkerFailed | WorkersFinished
