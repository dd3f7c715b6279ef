"""`LocalCluster` runs nodes on one machine, each a real torchrun agent with its workers, on a real etcd. Public.

Every process is started by this file and ended by its pid; every wait has a deadline, and its error says what was waited
for and what the nodes printed last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from dtf_lightning import environment
from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.observe.ledger import Audit, audit
from dtf_lightning.elastic.run.status import RunStatus, read_status
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import read_events
from dtf_lightning.events.registry import Event


class ClusterTimeout(AssertionError):
    """A condition was not met before the deadline."""


class LocalNode:
    """Control one torchrun process and its workers."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def worker_pids(self) -> list[int]:
        """Return the ids of the workers that run now, by local rank."""
        return _workers(self.pid)

    def kill_worker(self, local_rank: int = 0) -> None:
        """Kill one worker with SIGKILL."""
        _signal(self.worker_pids()[local_rank], signal.SIGKILL)

    def kill_agent(self) -> None:
        """Kill only the agent with SIGKILL."""
        _signal(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Kill the agent and its workers with SIGKILL, as if the machine were lost."""
        workers = self.worker_pids()
        _signal(self.pid, signal.SIGKILL)
        for pid in workers:
            _signal(pid, signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the agent, as `kill` or a scheduler would."""
        _signal(self.pid, number)

    def output(self) -> str:
        """Return what the node has printed so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait(self, timeout: float) -> int:
        """Wait at most `timeout` seconds for the agent's end; return its exit code. Raises `ClusterTimeout`."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ClusterTimeout(
                f"{self.name} was expected to end within {timeout:g} s; it printed:\n{self.output()[-3000:]}"
            ) from None


class LocalCluster:
    """Run an elastic training on this machine, inside a `with` block.

    Args:
        script: path of the training script.
        arguments: command-line arguments of the script.
        folder: folder for logs; each node's output is `<folder>/<name>.log`.
        run_id: id of the run (`--rdzv-id`).
        run_dir: folder where the workers write events and ledgers (`ElasticCallback(run_dir=...)`), if known.
        endpoint: endpoint of an etcd that is already running; `None` starts one for this cluster.
        nnodes, nproc_per_node, max_restarts, rdzv_conf: torchrun's flags. Without `mode` it is auto, as for a user: a
            script that constructs the callback in another file needs `{"mode": "live"}`.
        variables: environment variables that every node gets in addition.
        popen: starts a node's process; a function with the same arguments that starts it in another way.
    """

    def __init__(
        self,
        script: str | Path,
        arguments: Sequence[str] = (),
        *,
        folder: Path,
        run_id: str = "test",
        run_dir: Path | None = None,
        endpoint: str | None = None,
        nnodes: str = "1:4",
        nproc_per_node: int = 1,
        max_restarts: int = 0,
        rdzv_conf: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        popen: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:
        self.script, self.arguments = str(script), list(arguments)
        self.folder, self.run_id, self.run_dir = folder, run_id, run_dir
        self.nnodes, self.nproc_per_node, self.max_restarts = nnodes, nproc_per_node, max_restarts
        self.rdzv_conf = dict(rdzv_conf or {})
        self.variables = {"OMP_NUM_THREADS": "1", **(variables or {})}
        self.nodes: dict[str, LocalNode] = {}
        self.etcd: EmbeddedEtcd | None = None
        self._endpoint = endpoint
        self._popen = popen
        self._store: Store | None = None

    def __enter__(self) -> LocalCluster:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._endpoint is None:
            self.etcd = EmbeddedEtcd()
            self.etcd.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.kill()
            node.process.wait(30)
        if self._store is not None:
            self._store.close()
        if self.etcd is not None:
            self.etcd.__exit__(kind, error, traceback)

    @property
    def endpoint(self) -> str:
        if self._endpoint is not None:
            return self._endpoint
        assert self.etcd is not None, "use the cluster as a context manager"
        return self.etcd.endpoint

    @property
    def store(self) -> Store:
        """The test's own connection to etcd."""
        if self._store is None:
            self._store = connect(self.endpoint, quiet=True)  # quiet, because the nodes print which etcd it is
        return self._store

    def start(self, name: str, *, variables: Mapping[str, str] | None = None, script: str | None = None) -> LocalNode:
        """Start one node, as a user would on one more machine."""
        log = self.folder / f"{name}.log"
        conf = ",".join(f"{key}={value}" for key, value in self.rdzv_conf.items())
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nnodes={self.nnodes}",
            f"--nproc-per-node={self.nproc_per_node}",
            f"--max-restarts={self.max_restarts}",
            "--rdzv-backend=etcd",
            f"--rdzv-endpoint={self.endpoint}",
            f"--rdzv-id={self.run_id}",
            *([f"--rdzv-conf={conf}"] if conf else []),
            script or self.script,
            *self.arguments,
        ]
        with log.open("ab") as output:
            process = self._popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment.for_child({**self.variables, **(variables or {})}, without_prefix="TORCHELASTIC_"),
                start_new_session=True,
            )
        node = LocalNode(name, process, log)
        self.nodes[name] = node
        return node

    # --- state of the run -----------------------------------------------------------------------------------------------------

    def status(self) -> RunStatus:
        """Return the state that `dtf status` would print."""
        return read_status(self.store, self.run_id)

    def generation(self) -> int:
        """Return the number of the newest generation; 0 before the first."""
        try:
            generation = self.status().generation
        except SettingsError:  # no node has registered yet
            return 0
        return generation.number if generation is not None else 0

    def leader(self) -> LocalNode:
        """Return the node whose agent leads the run."""
        leader = self.status().leader
        for node in self.nodes.values():
            if leader is not None and f"-{node.pid}-" in leader:
                return node
        raise AssertionError(f"the leader is {leader!r}, which is none of {sorted(self.nodes)}")

    def events(self) -> list[Event]:
        """Return all events that the workers have written, in time order."""
        assert self.run_dir is not None, "LocalCluster(run_dir=...) was not given"
        found = [
            event for path in sorted(self.run_dir.glob("events/*.jsonl")) for event in read_events(ELASTIC_EVENTS, path)
        ]
        return sorted(found, key=lambda event: event.at)

    def audit(self) -> Audit:
        """Return the audit of the workers' ledgers."""
        assert self.run_dir is not None, "LocalCluster(run_dir=...) was not given"
        return audit(sorted(self.run_dir.glob("ledger/*.jsonl")))

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait_until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait at most `timeout` seconds for a condition. Raises `ClusterTimeout` with the end of the nodes' output."""

        def what_there_is() -> str:
            last = "\n".join(f"--- {node.name}:\n{node.output()[-2000:]}" for node in self.nodes.values())
            return f"{what}; the nodes printed last:\n{last}"

        try:
            poll_until(condition, timeout, what_there_is)
        except TimeoutError as error:
            raise ClusterTimeout(str(error)) from None

    def wait_for_generation(self, number: int, timeout: float = 60.0) -> None:
        self.wait_until(lambda: self.generation() >= number, f"generation {number}", timeout)

    def wait_for_output(self, node: LocalNode, text: str, timeout: float = 60.0) -> None:
        self.wait_until(lambda: text in node.output(), f"{text!r} from {node.name}", timeout)

    def wait_for_step(self, step: int, timeout: float = 60.0) -> None:
        """Wait until a worker has drawn the samples of optimizer step `step` (needs the ledger)."""
        assert self.run_dir is not None, "LocalCluster(run_dir=...) was not given"
        folder, mark = self.run_dir / "ledger", f'"step":{step},'.encode()
        self.wait_until(
            lambda: any(mark in path.read_bytes() for path in folder.glob("*.jsonl")), f"step {step}", timeout
        )

    def wait(self, timeout: float) -> dict[str, int]:
        """Wait at most `timeout` seconds for all nodes to end; return their exit codes by name."""
        end = time.monotonic() + timeout
        return {name: node.wait(max(0.1, end - time.monotonic())) for name, node in self.nodes.items()}


def _workers(agent: int) -> list[int]:
    """Return the agent's children that are workers, by local rank; it has others (a watchdog, spares)."""
    ranks: dict[int, int] = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for pid in _children(agent):
            variables = _environment(pid)
            if b"TORCHELASTIC_RESTART_COUNT" in variables:
                ranks[pid] = int(variables[b"LOCAL_RANK"])
    return sorted(ranks, key=lambda pid: ranks[pid])


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield from map(int, (task / "children").read_text().split())


def _environment(pid: int) -> dict[bytes, bytes]:
    """Return a process's environment variables; empty if the process has ended."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return {name: value for name, _, value in (line.partition(b"=") for line in lines)}
    return {}


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
