"""A run of real agents and forked workers, and what must hold at its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.events import ELASTIC_EVENTS, WorkerRescaled
from dtf_lightning.elastic.observe.ledger import Audit, audit
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.elastic.testkit.faults import held_mark
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import read_events
from support.elastic.programs.node_process import NodeSpec, run_node
from support.elastic.training import Training
from support.fork_server import ForkServer

PATIENCE = 300.0
"""Seconds that anything which must come gets to come."""

DEFAULTS = {"stability_window": 0.05, "initial_window": 0.05}


def exactly(num_nodes: int) -> dict[str, float]:
    """Settings: the first generation is formed when, and as soon as, so many nodes are there."""
    return {"max_nodes": num_nodes, "initial_window": PATIENCE, "max_wait": PATIENCE}


@dataclass
class ForkedNode:
    """One node of the run."""

    spec: NodeSpec
    pid: int
    run: ElasticRun

    def worker_pids(self, start: int = 1) -> list[int]:
        """Those of the node's `start`-th incarnation."""
        path = self.spec.folder / f"{self.spec.name}.pids.{start}"
        self.run.wait_for_file(path)
        return [int(pid) for pid in path.read_text().split()]

    def exit_codes(self, start: int = 1) -> list[int]:
        """Those of its workers, by local rank."""
        return [int(code) for code in (self.spec.folder / f"{self.spec.name}.codes.{start}").read_text().split()]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill_agent(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def log(self, local_rank: int = 0) -> str:
        """What the worker printed."""
        return (self.spec.folder / f"{self.spec.name}.{local_rank}.log").read_text()

    def agent_log(self) -> str:
        return (self.spec.folder / f"{self.spec.name}.log").read_text()


@dataclass
class ElasticRun:
    """One run id on a shared etcd."""

    server: ForkServer
    store: Store
    endpoint: str
    folder: Path
    training: Training
    elastic: Mapping[str, float] = field(default_factory=dict)
    agent: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    run_id: str = field(default_factory=lambda: f"run-{uuid.uuid4().hex[:8]}")
    nodes: dict[str, ForkedNode] = field(default_factory=dict)

    # --- doing -------------------------------------------------------------------------------------------------------

    def start(self, *names: str, num_workers: int = 1, num_restarts: int = 0, training: Training | None = None) -> None:
        """Start nodes, as users would on more machines."""
        for name in names:
            spec = NodeSpec(
                name=name,
                folder=self.folder,
                endpoint=self.endpoint,
                run_id=self.run_id,
                training=training or self.training,
                elastic={"min_nodes": 1, "max_nodes": 8, **DEFAULTS, **self.elastic},
                agent=self.agent,
                num_workers=num_workers,
                num_restarts=num_restarts,
                environment=self.environment,
            )
            self.nodes[name] = ForkedNode(spec, self.server.fork(run_node, self.folder / f"{name}.log", spec), self)

    def wait_for_held(self, name: str, *ranks: int) -> None:
        """Until these ranks have come to the fault that holds them until the file `name` is there."""
        for rank in ranks:
            self.wait_for_file(held_mark(self.folder / name, rank))

    def release(self, name: str) -> None:
        """Let go what a fault holds until the file `name` is there."""
        (self.folder / name).touch()

    def stop(self) -> None:
        """End the training of `until_stopped`."""
        self.release("stop")

    def close(self) -> None:
        """End what is still there: on a failure everything, else DataLoader workers whose parent was killed.

        Those end by themselves, but look for their parent every 5 s only (torch's `MP_STATUS_CHECK_INTERVAL`).
        """
        for node in self.nodes.values():
            if self.server.wait(node.pid, 0.01) is None:
                os.kill(node.pid, signal.SIGKILL)
                self.server.wait(node.pid, PATIENCE)
        for path in self.folder.glob("*.pids.*"):
            for pid in map(int, path.read_text().split()):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait_for(self, what: Callable[[RunView], bool], description: str) -> RunView:
        """The first view of the run's keys in which this holds."""
        view = RunView(RunKeys(self.run_id))
        end = time.monotonic() + PATIENCE
        snapshot = self.store.range(view.keys.prefix)
        view.reset(snapshot)
        watch = self.store.watch(view.keys.prefix, start_revision=snapshot.revision + 1)
        try:
            while not what(view):
                left = end - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"{description} did not come: {view.generation}, {self.last_words()}")
                view.apply(watch.get(left) or ())
        finally:
            watch.cancel()
        return view

    def wait_for_world(self, num_workers: int, *, after: int = 0) -> int:
        """Until a generation above `after` of this size trains; its number."""

        def trains(view: RunView) -> bool:
            generation = view.generation
            if generation is None or generation.number <= after or generation.world_size != num_workers:
                return False
            records = [view.nodes.get(member.node) for member in generation.members]
            return all(
                r is not None and r.state.value == "active" and r.generation == generation.number for r in records
            )

        generation = self.wait_for(trains, f"a world of {num_workers} after generation {after}").generation
        assert generation is not None
        return generation.number

    def wait_for_members(self, names: Iterable[str]) -> None:
        """Until the generation that trains consists of these nodes."""

        def trains(view: RunView) -> bool:
            generation = view.generation
            if generation is None or {member.node for member in generation.members} != set(names):
                return False
            return all(view.nodes[name].generation == generation.number for name in names if name in view.nodes)

        self.wait_for(trains, f"a generation of {sorted(names)}")

    def wait_for_steps(self, number: int) -> None:
        """Until so many more batches have been drawn."""
        self.wait_for_draws(self._num_drawn() + number)

    def wait_for_draws(self, number: int) -> None:
        """Until so many batches have been drawn since the run began, over all workers."""
        self._poll(lambda: self._num_drawn() >= number, f"{number} batches")

    def _num_drawn(self) -> int:
        return sum(path.read_bytes().count(b"draw") for path in self.folder.glob("ledger/*.jsonl"))

    def wait_for_file(self, path: Path) -> None:
        self._poll(path.exists, f"the file {path.name}")

    def wait_for_log(self, name: str, text: str, *, of_agent: bool = False) -> None:
        """Until the first worker of this node, or its agent, has printed `text`."""
        node = self.nodes[name]

        def said() -> bool:
            try:
                return text in (node.agent_log() if of_agent else node.log())
            except FileNotFoundError:  # not started yet
                return False

        self._poll(said, f"{text!r} from {name}")

    def _poll(self, condition: Callable[[], bool], description: str) -> None:
        poll_until(condition, PATIENCE, lambda: f"{description}: {self.last_words()}", interval=0.01)

    def wait_until_over(self, *, failed: int | None = 0) -> dict[str, int]:
        """The exit codes of all nodes, as torchrun's would be; so many of them (`None`: any) must have failed."""
        codes = {}
        end = time.monotonic() + PATIENCE
        for name, node in self.nodes.items():
            code = self.server.wait(node.pid, max(0.01, end - time.monotonic()))
            if code is None:
                self._dump_stacks()
                raise AssertionError(f"{name} does not end: {self.last_words()}")
            codes[name] = code
        num_failed = sum(code != 0 for code in codes.values())
        assert failed in (None, num_failed), (
            f"exit codes {codes}, expected {failed} of them not to be 0: {self.last_words()}"
        )
        return codes

    def _dump_stacks(self) -> None:
        for node in self.nodes.values():
            if psutil.pid_exists(node.pid):
                for process in [psutil.Process(node.pid), *psutil.Process(node.pid).children()]:
                    process.send_signal(signal.SIGUSR1)
        self.server.wait(0, 0.5)  # time for faulthandler to write

    def last_words(self) -> str:
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- {path.name}:\n{path.read_text()[-3000:]}" for path in logs)

    # --- what must hold ----------------------------------------------------------------------------------------------

    def ledgers(self) -> list[Path]:
        return sorted(self.folder.glob("ledger/*.jsonl"))

    def audit(self) -> Audit:
        return audit(self.ledgers())

    def results(self) -> dict[str, dict[str, Any]]:
        """What those who came to the end wrote down, by worker."""
        return read_results(self.folder)

    def rescales(self) -> list[WorkerRescaled]:
        """What the workers measured, in time order."""
        events = [event for path in self.folder.glob("events/*.jsonl") for event in read_events(ELASTIC_EVENTS, path)]
        return sorted((e for e in events if isinstance(e, WorkerRescaled)), key=lambda e: e.at)

    def check(self, *, survivors: int, **expected: Any) -> None:
        """As `check_survivors`, with the nodes' last words."""
        assert len(self.results()) == survivors, f"survivors: {sorted(self.results())}; {self.last_words()}"
        check_survivors(self.folder, self.training, survivors=survivors, **expected)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name.rsplit(".", 2)[0]: json.loads(path.read_text()) for path in folder.glob("*.result")}


def check_survivors(
    folder: Path,
    training: Training,
    *,
    survivors: int,
    epochs: int | None = None,
    dropped: int = 0,
    complete: bool = True,
) -> None:
    """Survivors are identical; every sample of every epoch was consumed exactly once, but `dropped` per epoch.

    `complete` False: the last epoch was not trained to its end, on purpose.
    """
    results = read_results(folder)
    assert len(results) == survivors, sorted(results)
    first, *others = (result["same"] for result in results.values())
    for other in others:
        assert other == first, results
    account = audit(sorted(folder.glob("ledger/*.jsonl")))
    assert account.steps_lost == 0
    assert account.absent == ()
    assert account.committed_steps == first["global_step"]
    if epochs is not None:
        assert len(account.epochs) == epochs
    for epoch in account.epochs.values():
        assert not epoch.repeated(), f"epoch {epoch.epoch}"
        if complete or epoch.epoch < max(account.epochs):
            unseen = epoch.missing(training.num_samples) + epoch.elsewhere(training.num_samples)
            assert len(unseen) <= dropped, f"epoch {epoch.epoch}"
