"""What stands in for the agent's socket where no agent of ours started the worker: only signals tell it anything."""

from __future__ import annotations

import threading

from dtf_lightning import environment
from dtf_lightning.elastic.link.messages import Assign, Stop, Welcome
from dtf_lightning.elastic.snapshots.node import agent_name
from dtf_lightning.environment import TorchelasticWorld

FORM_TIMEOUT = 60.0
"""Seconds for the members, all of whom have come, to connect to each other."""


class RestartLink:
    """The part of `WorkerLink` that the session uses. `stop` belongs to signal handlers, the rest to the main thread."""

    def __init__(self, world: TorchelasticWorld) -> None:
        self.welcome = Welcome(
            run_id=environment.read(environment.RUN_ID) or world.run_id,
            node=environment.read(environment.NODE) or agent_name(),
            joiner=False,
            rank=world.rank,
            world_size=world.world_size,
            store_host=world.store_host,
            store_port=world.store_port,
            incarnation=1,
            num_local_workers=world.num_local_workers,
            heartbeat_interval=1.0,
            rescale_timeout=FORM_TIMEOUT,
        )
        self.step = 0
        self.reason = ""
        """Why this worker stops; empty while it does not."""
        self.abort_reason: str | None = None
        self.broken = False
        self.stopping: Stop | None = None
        self._asked = threading.Event()

    def leaving(self, reason: str) -> None:
        """Stop at the next boundary. Safe in a signal handler."""
        self.reason = self.reason or reason
        self._asked.set()

    def is_leaving(self) -> bool:
        return bool(self.reason)

    def wait_to_leave(self, timeout: float) -> bool:
        """Whether somebody asks this worker to stop within so many seconds."""
        return self._asked.wait(timeout)

    def at_boundary(self) -> bool:
        return bool(self.reason)

    def check(self) -> None:
        """Between boundaries nothing can have been announced: a peer that stopped shows in the next collective."""

    def active(self, step: int) -> None:
        """Nobody asks."""
        self.step = step

    def assignment(self, generation: dict[str, object]) -> Assign:
        return Assign(generation=generation, rank=self.welcome.rank, world_size=self.welcome.world_size)

    def send(self, message: object) -> None:
        """No agent listens: events stay in the run's folder."""

    def close(self) -> None:
        """There is nothing to hang up on."""
