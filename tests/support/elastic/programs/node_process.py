"""A node without torchrun: a process with a real agent, and the forked workers that it starts, watches and restarts.

The workers are forked before the agent has any thread, and wait until the agent lets them go.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from dtf_lightning.clock import SystemClock
from dtf_lightning.elastic.agent.inbox import PeerAnswered
from dtf_lightning.elastic.agent.live.agent import LiveAgent
from dtf_lightning.elastic.agent.monitoring.monitor import start_monitor
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.settings import AgentSettings, ElasticSettings
from dtf_lightning.etcd import connect
from dtf_lightning.events.log import EventLog
from dtf_lightning.processes.signals import thread_state
from support.elastic.training import Training, train
from support.fork_server import fork_child

POLL = 0.05
"""Seconds between two looks at the workers, half of torchelastic's."""
LEAP = signal.SIGUSR2


class Clock(SystemClock):
    """The machine's clock. It leaps by a heartbeat's timeout while a worker of the node is stopped, and by half of the grace
    period on the signal `LEAP`: timeouts that are short enough for a test end healthy workers on a busy machine.
    """

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """One node."""

    name: str
    folder: Path
    endpoint: str
    run_id: str
    training: Training
    elastic: Mapping[str, float] = field(default_factory=dict)
    agent: Mapping[str, float] = field(default_factory=dict)
    num_workers: int = 1
    num_restarts: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the agent's, which its workers have from it."""

    @property
    def socket_path(self) -> str:
        return str(self.folder / f"{self.name}.sock")


@dataclass
class _Worker:
    pid: int
    gate: int
    """What it waits for: a byte lets it go, the end of file sends it home."""


def run_node(spec: NodeSpec) -> None:
    """What torchrun does, as far as the agent sees. Ends with 0, or 1 when its workers failed."""
    _set_up_logging()
    os.environ.update(spec.environment)
    gates: list[int] = []
    starts = [
        [_fork_worker(spec, rank, gates) for rank in range(spec.num_workers)] for _ in range(spec.num_restarts + 1)
    ]
    store = connect(spec.endpoint, quiet=True)
    tcp_store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    settings = AgentSettings(elastic=ElasticSettings(**spec.elastic), **spec.agent)  # type: ignore[arg-type]
    event_log = EventLog(ELASTIC_EVENTS)
    clock = Clock()
    agent = LiveAgent(
        store,
        settings,
        spec.run_id,
        node=spec.name,
        host="127.0.0.1",
        store_port=tcp_store.port,
        socket_path=spec.socket_path,
        clock=clock,
        event_log=event_log,
    )

    def leap(seconds: float) -> None:
        clock.ahead += seconds
        agent._inbox.put(PeerAnswered(spec.name))  # it looks at its clock

    signal.signal(LEAP, lambda *_: leap(settings.grace_period / 2))
    signal.signal(signal.SIGTERM, lambda *_: agent.leave("SIGTERM"))
    agent.start()
    if settings.traces:
        from dtf_lightning.elastic.agent.monitoring import traces

        traces.CLOSE_TIMEOUT = 60.0  # the test's collector answers, however slow the machine is
    monitor = start_monitor(settings, spec.run_id, spec.name, "127.0.0.1", event_log)
    try:
        for number, workers in enumerate(starts, start=1):
            agent.await_start()
            agent.workers_starting(len(workers))
            _note(spec, f"pids.{number}", [worker.pid for worker in workers])
            for worker in workers:
                os.write(worker.gate, b"x")
            codes = _watch(agent, workers, lambda: leap(settings.elastic.heartbeat_timeout))
            _note(spec, f"codes.{number}", codes)
            if not any(codes) or agent.exit_reason is not None:
                break
    finally:
        agent.close()
        if monitor is not None:
            monitor.close()
        store.close()
    raise SystemExit(int(any(codes)))


def _set_up_logging() -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(process)d] %(message)s")
    logging.getLogger("dtf_lightning").setLevel(logging.INFO)


def _note(spec: NodeSpec, name: str, numbers: list[int]) -> None:
    path = spec.folder / f"{spec.name}.{name}"
    path.with_suffix(".new").write_text(" ".join(map(str, numbers)))
    path.with_suffix(".new").rename(path)


def _fork_worker(spec: NodeSpec, local_rank: int, gates: list[int]) -> _Worker:
    theirs, ours = os.pipe()
    log = os.open(spec.folder / f"{spec.name}.{local_rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    gates.append(ours)
    pid = fork_child(_run_worker, (spec, local_rank, theirs), log, to_close=gates)
    os.close(theirs)
    os.close(log)
    return _Worker(pid, ours)


def _run_worker(spec: NodeSpec, local_rank: int, gate: int) -> None:
    if not os.read(gate, 1):
        return
    os.close(gate)
    _set_up_logging()
    os.environ.update(
        DTF_AGENT_SOCKET=spec.socket_path,
        DTF_RUN_ID=spec.run_id,
        LOCAL_RANK=str(local_rank),
        RANK=str(local_rank),
        WORLD_SIZE=str(spec.num_workers),
        LOCAL_WORLD_SIZE=str(spec.num_workers),
        GROUP_RANK="0",
        TORCHELASTIC_RUN_ID=spec.run_id,
        MASTER_ADDR="live-run.invalid",
        MASTER_PORT="none",
    )
    train(spec.training, spec.folder, f"{spec.name}.{local_rank}")


def _watch(agent: LiveAgent, workers: list[_Worker], leap: Callable[[], None]) -> list[int]:
    """Wait until all workers have ended; end them all when one fails, or when it is time to go. Their exit codes.

    `leap` is called while a worker is stopped.
    """
    codes: dict[int, int] = {}
    try:
        while len(codes) < len(workers):
            for worker in workers:
                if worker.pid not in codes:
                    pid, status = os.waitpid(worker.pid, os.WNOHANG)
                    if pid:
                        codes[pid] = os.waitstatus_to_exitcode(status)
                    elif thread_state(worker.pid, worker.pid) == "T":
                        leap()
            if any(codes.values()):
                break
            agent.check()
            time.sleep(POLL)
    finally:
        for worker in workers:
            if worker.pid not in codes:
                os.killpg(worker.pid, signal.SIGKILL)
                codes[worker.pid] = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
    return [codes[worker.pid] for worker in workers]
