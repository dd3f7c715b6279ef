"""Restart agents in this process, on the in-memory store, with a stand-in for torchelastic that asks and starts nothing."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from dtf_lightning.elastic.agent.restart.agent import RestartAgent
from dtf_lightning.elastic.agent.restart.inbox import WorkerFailed
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.events.log import EventLog, read_events
from dtf_lightning.events.registry import Event

PATIENCE = 60.0
"""Seconds that anything which must come gets to come."""


class RestartNode:
    """One agent, and what torchelastic's main thread does with it."""

    def __init__(
        self,
        backend: MemoryBackend,
        run_id: str,
        name: str,
        folder: Path,
        *,
        script: str = "train.py",
        **elastic: float,
    ) -> None:
        self.store = MemoryStore(backend)
        self._log = folder / f"{name}.jsonl"
        rules = {"min_nodes": 1, "max_nodes": 4, "stability_window": 0.05, "initial_window": 0.1, **elastic}
        settings = AgentSettings(elastic=ElasticSettings(**rules))  # type: ignore[arg-type]
        self.agent = RestartAgent(
            self.store,
            settings,
            run_id,
            node=name,
            host="127.0.0.1",
            script=script,
            abort_note=folder / f"{name}.abort",
            event_log=EventLog(ELASTIC_EVENTS, self._log),
        )
        self.main = ThreadPoolExecutor(1, f"main-of-{name}")
        self.agent.start()

    def ask(self) -> Future[Generation]:
        """torchelastic's workers have stopped: it asks for the next round."""
        return self.main.submit(self.agent.next_round, 29500)

    def enter(self) -> Generation:
        """Ask, and be in the next round."""
        generation = self.ask().result(PATIENCE)
        self.agent.workers_starting(1)
        return generation

    def fail(self, pid: int, local_rank: int, cause: str) -> None:
        """What the watching thread says of a worker's end."""
        self.agent._inbox.put(WorkerFailed(pid, local_rank, cause))

    def close(self) -> None:
        """Idempotent."""
        self.agent.close()
        self.store.close()
        self.main.shutdown()

    def events(self, kind: str) -> list[Event]:
        """Those of this kind in the node's log, once it is closed."""
        return [event for event in read_events(ELASTIC_EVENTS, self._log) if event.kind == kind]
