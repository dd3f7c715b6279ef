"""`LocalFarm`: a whole farm of processes on this machine, whose parts can be killed, frozen and started again.

Rules that this file guards:
- Every coordinator is reached by way of a proxy, which keeps its address over all its starts, and whose connections can
  be cut.
- Nothing outlives this process: it ends all that it has started, and where it is killed its watchdog does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import DtfError, StoreError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.server.embedded import EtcdBinary
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import LeaderRecord
from dtf_lightning.farm.testkit.leftovers import processes_of
from dtf_lightning.farm.testkit.orders import REAL
from dtf_lightning.farm.testkit.proxy import Proxy
from dtf_lightning.farm.tokens import make_token
from dtf_lightning.farm.worker.offer import keep_profile
from dtf_lightning.farm.worker.profile import WorkerProfile
from dtf_lightning.processes.freezing import freeze
from dtf_lightning.processes.watchdog_process import Watchdog

READY_TIMEOUT = 90.0
"""Seconds for a part to be ready: imports on a busy machine."""
STOP_TIMEOUT = 60.0
ASK_TIMEOUT = 0.7
"""Seconds for etcd to say who leads, when some of its members may be dead."""
TAIL = 3000


@dataclass(frozen=True, kw_only=True)
class FarmShape:
    """What a farm consists of."""

    members: int = 3
    """Of etcd."""
    coordinators: int = 3
    workers: int = 2
    """Processes, as `dtf farm worker` starts them."""
    worker_cpus: float = 2.0
    """That each of these offers."""
    crowds: int = 0
    """Processes of simulated workers."""
    crowd_size: int = 5
    crowd_cpus: float = 4.0
    durable: bool = False
    """etcd writes to the disk before it answers."""
    etcd: EtcdBinary | None = None
    """That the members run; `None`: the one that is found."""
    worker_grace: float = 4.0
    """Seconds for which a worker may be away."""
    proxied: bool = True
    """Coordinators are reached by way of proxies; without them a measurement does not measure these, too."""


class Part:
    """A process of the farm, which can be started again and again.

    Args:
        module: that Python runs.
        log: file for its standard error.
        variables: in its environment.
    """

    def __init__(self, name: str, module: str, log: Path, variables: Mapping[str, str]) -> None:
        self.name, self.log = name, log
        self.num_starts = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._module, self._variables = module, variables
        self._first_line: Future[str] = Future()

    @property
    def runs(self) -> bool:
        """Whether its process is there."""
        return self.process is not None and self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it runs and has said its first line."""
        return self.runs and self._first_line.done() and bool(self._first_line.result())

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self.process is not None
        return self.process.pid

    def start(self, arguments: list[str], *, ready: Future[str] | None = None) -> None:
        """Start it, without waiting. `ready` gets the first line that it says, as `first_line` tells it."""
        assert not self.runs
        self._first_line = ready or Future()
        self.num_starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=environment.for_child(
                    {**self._variables, "PYTHONUNBUFFERED": "1"}, without_prefix=environment.FARM_UP
                ),
            )
        threading.Thread(target=self._read, args=(self.process, self._first_line), daemon=True).start()

    def first_line(self) -> str:
        """Wait for the first line that it says. Raises `DtfError`, with its last words, if it does not get ready."""
        try:
            line = self._first_line.result(READY_TIMEOUT)
        except NotYet:
            line = ""
        if not line:
            raise DtfError(f"{self.name} did not get ready: {self.last_words()}")
        return line

    def kill(self) -> None:
        """End it by SIGKILL, and wait for its end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop it by SIGSTOP."""
        freeze(self.pid)

    def thaw(self) -> None:
        """Let it go on, if it is still there."""
        if self.runs:
            os.kill(self.pid, signal.SIGCONT)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still there; a frozen process gets it, too."""
        if self.runs:
            self.thaw()
            os.kill(self.pid, number)

    def wait_for_end(self) -> int:
        """Wait for its end, kill it where it does not come, and return its exit code."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT)
        if self.runs:
            self.kill()
        return self.process.wait()

    def last_words(self) -> str:
        """Return the end of what it has written."""
        return self.log.read_bytes()[-TAIL:].decode(errors="replace").strip() if self.log.exists() else ""

    @staticmethod
    def _read(process: subprocess.Popen[bytes], first: Future[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            first.set_result(process.stdout.readline().decode(errors="replace").strip())
            for _ in process.stdout:
                pass


class LocalFarm:
    """A farm with etcd members, coordinators `c0`, ..., workers `w0`, ... and crowds `s0`, ... A context manager.

    Args:
        folder: empty; all that it writes lies there.

    Raises `SettingsError` (no etcd), and `DtfError` if a part does not get ready.
    """

    def __init__(self, folder: Path, shape: FarmShape, *, name: str = "storm") -> None:
        self.folder, self.shape, self.name = folder.absolute(), shape, name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.keys = FarmKeys(name)
        self.token_file = self.folder / "token"
        make_token(self.token_file)
        self._cleanup = ExitStack()
        self._mark = uuid.uuid4().hex
        try:
            self._begin()
        except BaseException:
            self._cleanup.close()
            raise

    def _begin(self) -> None:
        watchdog = Watchdog(environment.FARM_UP, self._mark)
        self._cleanup.callback(watchdog.close)
        self.etcd = self._cleanup.enter_context(
            EtcdCluster(self.shape.members, durable=self.shape.durable, binary=self.shape.etcd)
        )
        self.store: Store = self._cleanup.enter_context(connect(self.etcd.endpoint, quiet=True))
        self.coordinators = {name: self._part(name) for name in _names("c", self.shape.coordinators)}
        self.proxies: dict[str, Proxy] = {}
        self._addresses = {name: f"http://127.0.0.1:{_free_port()}" for name in self.coordinators}
        for name in self.coordinators if self.shape.proxied else ():
            self.proxies[name] = Proxy()
            self._cleanup.callback(self.proxies[name].close)
            self._addresses[name] = self.proxies[name].url
        self.workers = {name: self._part(name) for name in _names("w", self.shape.workers)}
        self.crowds = {
            name: self._part(name, "dtf_lightning.farm.testkit.crowd") for name in _names("s", self.shape.crowds)
        }
        self._cleanup.callback(self._end_all)
        for name in self.coordinators:
            self.start_coordinator(name)
        for part in self.coordinators.values():
            part.first_line()
        for name in self.workers:
            self.start_worker(name)
        for name in self.crowds:
            self.start_crowd(name)
        for part in (*self.workers.values(), *self.crowds.values()):
            part.first_line()

    def __enter__(self) -> LocalFarm:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def url(self) -> str:
        """Of all coordinators, with commas."""
        return ",".join(self._addresses.values())

    @property
    def ledgers(self) -> list[Path]:
        """What the crowds have written."""
        return sorted(self.folder.glob("s*.ledger"))

    @property
    def files(self) -> Path:
        """The folder that the coordinators share."""
        return self.folder / "files"

    def client(self, *coordinators: str) -> Client:
        """Return a client of these coordinators, or of all."""
        urls = [self._addresses[name] for name in coordinators or self._addresses]
        return Client(",".join(urls), self.token_file)

    def leader(self) -> str | None:
        """Return the coordinator that leads, as etcd has it; `None` if none does, or etcd does not answer."""
        try:
            held = self.store.get(self.keys.leader, timeout=ASK_TIMEOUT)
        except StoreError:
            return None
        if held is None:
            return None
        value = decode(Kind.LEADER, held.value)
        assert isinstance(value, LeaderRecord)
        return value.coordinator

    # --- starting its parts ------------------------------------------------------------------------------------------

    def start_coordinator(self, name: str) -> None:
        """Start a coordinator, without waiting; its proxy leads to it as soon as it listens."""
        proxy, address = self.proxies.get(name), self._addresses[name]

        def listens(line: Future[str]) -> None:
            port = line.result().rpartition(":")[2]
            if proxy is not None:
                proxy.lead_to(int(port) if port.isdigit() else None)

        ready: Future[str] = Future()
        ready.add_done_callback(listens)
        self.coordinators[name].start(
            [
                "farm", "coordinator", "--name", name, "--farm-name", self.name, "--endpoint", self.etcd.endpoint,
                "--port", address.rpartition(":")[2] if proxy is None else "0", "--advertise", address, "--worker-grace", str(self.shape.worker_grace),
                "--folder", str(self.files), "--token-file", str(self.token_file),
            ],
            ready=ready,
        )  # fmt: skip

    def start_worker(self, name: str) -> None:
        """Start a worker, without waiting."""
        folder = self.folder / name
        keep_profile(folder, self._profile())  # finding out what a machine has takes seconds each time
        self.workers[name].start(
            [
                "farm", "worker", "--name", name, "--coordinator", self.url, "--token-file", str(self.token_file),
                "--folder", str(folder), "--label", REAL,
            ]
        )  # fmt: skip

    def start_crowd(self, name: str) -> None:
        """Start a process of simulated workers, without waiting."""
        self.crowds[name].start(
            [
                "--coordinator", self.url, "--token-file", str(self.token_file), "--prefix", f"{name}-",
                "--workers", str(self.shape.crowd_size), "--cpus", str(self.shape.crowd_cpus),
                "--ledger", str(self.folder / f"{name}.ledger"),
            ]
        )  # fmt: skip

    def _profile(self) -> WorkerProfile:
        return WorkerProfile(
            devices={"cpu": self.shape.worker_cpus}, device_names={}, labels=("linux",), hardware={}, software={}
        )

    def _part(self, name: str, module: str = "dtf_lightning") -> Part:
        return Part(name, module, self.folder / f"{name}.log", {environment.FARM_UP: self._mark})

    # --- its end -----------------------------------------------------------------------------------------------------

    def lose_machine(self, name: str) -> None:
        """Kill a worker with its keeper and its tasks, as the loss of its machine does."""
        worker = self.workers[name]
        worker.signal(signal.SIGKILL)
        _kill_all(processes_of(self.folder / name))
        worker.kill()

    def _end_all(self) -> None:
        for part in self.coordinators.values():
            part.signal(signal.SIGKILL)
        for part in (*self.crowds.values(), *self.workers.values(), *self.coordinators.values()):
            if part.process is not None:
                part.kill()
        _kill_all(processes_of(self.folder))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _names(letter: str, number: int) -> list[str]:
    return [f"{letter}{index}" for index in range(number)]


def _kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
