"""`dtf farm up`: a whole farm on one machine. This process is the parent of its etcd, its coordinator and its worker.

Rules that this file guards:
- A child that ends by itself is started again, since coordinators and workers are crash-only; one that ends again and
  again ends the farm, with the last of what it wrote.
- Nothing outlives this process: it ends its children in order, and where it is killed its watchdog does.
- The record, the farm's files and the token stay in the farm's home: the next `dtf farm up` goes on with them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from dtf_lightning import environment
from dtf_lightning.clock import poll_until
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.etcd.server.embedded import LOOK, EmbeddedEtcd
from dtf_lightning.etcd.wire.version import version_advice
from dtf_lightning.farm.home import FarmHome, RunningFarm
from dtf_lightning.farm.security.names import LOOPBACK, Listening
from dtf_lightning.farm.security.sealing.sources import put_new_key
from dtf_lightning.farm.sign_in import SignIn
from dtf_lightning.farm.tokens import make_token, read_token
from dtf_lightning.processes.signals import open_pidfd
from dtf_lightning.processes.watchdog_process import Watchdog

READY_TIMEOUT = 60.0
"""Seconds for a child to say that it is ready: imports on a busy machine."""
STOP_TIMEOUT = 25.0
"""Seconds for a child to end, the worker's attempts among it."""
MAX_ENDS, ENDS_WITHIN = 5, 60.0
"""So many ends of one child in so many seconds are too many."""
WORKER_GRACE = 30.0
"""Seconds: no other worker could take its tasks over, and one that was killed is back after its imports."""
TAIL = 2000

Say = Callable[[str], object]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Where the farm's coordinator listens, and how it is spoken with."""

    port: int
    """0: a free one."""
    host: str = "127.0.0.1"
    ca: Path | None = None
    """The authority of its certificate, for those on this machine that talk with it."""
    more: tuple[str, ...] = ()
    """Further options of `dtf farm coordinator`, which `dtf farm up` takes, too: TLS, the address that it advertises, ..."""

    def __post_init__(self) -> None:
        self._listening()
        if self.port == 0 and "--advertise" in self.more:
            raise SettingsError("with --advertise say by --port which port it is: 0 is another one at every start")

    @property
    def warning(self) -> str:
        """What everybody should know who looks at this farm; "" for nothing."""
        return self._listening().warning

    def _listening(self) -> Listening:
        return Listening(host=self.host, tls="--tls-cert" in self.more, insecure="--insecure" in self.more)

    @property
    def audience(self) -> str:
        """Who can reach the coordinator, in words."""
        return "this machine only" if self.host in LOOPBACK else f"for all who reach {self.host}"

    @property
    def advertise(self) -> str:
        """Where others reach the coordinator, if not where it listens; "" for none."""
        return self.more[self.more.index("--advertise") + 1].rstrip("/") if "--advertise" in self.more else ""

    @property
    def words(self) -> list[str]:
        """As options of a coordinator."""
        return ["--port", str(self.port), "--host", self.host, *self.more]


class _Child:
    """A process of the farm, which is started again when it ends."""

    def __init__(self, name: str, arguments: list[str], folder: Path, mark: str) -> None:
        self.name = name
        self.arguments = arguments
        self._log_path = folder / f"{name}.log"
        self._mark = mark
        self._ends: deque[float] = deque(maxlen=MAX_ENDS)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Start it and return the first line that it says. Raises `DtfError` if it does not get ready."""
        with self._log_path.open("ab") as log_file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dtf_lightning", "farm", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,  # Ctrl-C reaches it by way of us, in order
                env=environment.for_child(
                    {environment.FARM_UP: self._mark, "PYTHONUNBUFFERED": "1"}, without_prefix=environment.FARM_UP
                ),
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], READY_TIMEOUT)
        line = self.process.stdout.readline().decode(errors="replace").strip() if ready else ""
        if not line:
            self.stop()
            raise DtfError(f"the {self.name} did not get ready: {self.last_words()}")
        return line

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def too_often(self) -> bool:
        """Note an end; whether there were too many."""
        now = time.monotonic()
        self._ends.append(now)
        return len(self._ends) == MAX_ENDS and now - self._ends[0] < ENDS_WITHIN

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and kill it where it does not. Idempotent."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def last_words(self) -> str:
        """The end of what it has written to its log."""
        try:
            text = self._log_path.read_bytes()[-TAIL:].decode(errors="replace").strip()
        except OSError:
            text = ""
        last = text.splitlines()[-1] if text else "it wrote nothing"
        return f"{last} (all of it in {self._log_path})"


def run_farm(home: FarmHome, reach: Reach, *, say: Say, strategy: str = "fair_share") -> None:
    """Run a farm until SIGINT or SIGTERM. Call it from the main thread.

    Raises `SettingsError` for a port that is taken and a home that another farm uses, `DtfError` for a part of the farm
    that does not start, or ends again and again.
    """
    home.make()
    if (running := RunningFarm.read(home.running)) is not None and running.is_alive:
        raise SettingsError(
            f"a farm runs here already, at {running.url} (process {running.pid}): end it with `dtf farm down`, or give this "
            "one another --home and --port"
        )
    token_file = home.token
    make_token(token_file)
    if not home.secrets_key.exists():
        put_new_key(home.secrets_key)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    mark = uuid.uuid4().hex
    try:
        with contextlib.ExitStack() as stack:
            watchdog = Watchdog(environment.FARM_UP, mark)
            stack.callback(watchdog.close)
            etcd = stack.enter_context(EmbeddedEtcd(data_dir=home.folder / "etcd"))
            coordinator = _Child(
                "coordinator", _coordinator_arguments(home, etcd.endpoint, reach, strategy), home.folder, mark
            )
            stack.callback(coordinator.stop)
            url = coordinator.start()
            reach = replace(reach, port=urlsplit(url).port or reach.port)
            url = reach.advertise or url
            coordinator.arguments = _coordinator_arguments(home, etcd.endpoint, reach, strategy)
            worker = _Child("worker", _worker_arguments(home, url, reach), home.folder, mark)
            stack.callback(worker.stop, signal.SIGINT)
            offers = worker.start()
            ca = str(reach.ca) if reach.ca else None
            RunningFarm(url=url, token_file=str(token_file), pid=os.getpid(), ca=ca).write(home.running)
            stack.callback(home.running.unlink, missing_ok=True)
            defects = version_advice(etcd.version)
            for line in (
                *(f"warning: etcd {etcd.version}: {told}; {remedy}" for told, remedy in defects),
                *([f"warning: {reach.warning}"] if reach.warning else []),
                f"farm up at {url} (etcd {etcd.version}, {reach.audience})",
                f"  its page: {SignIn(read_token(token_file)).link(url, time.time())}",
                "    (this link signs a browser in once, within ten minutes; `dtf farm sign-in` prints another)",
                f"  {offers}",
                f"  token: {token_file}",
                "  try: dtf farm run -- python -c 'print(6 * 7)'",
                "  Ctrl-C ends it; what it has accepted is kept for the next time",
            ):
                say(line)
            _watch(etcd, [coordinator, worker], say)
    except KeyboardInterrupt:
        say("farm ended")
    finally:
        signal.signal(signal.SIGTERM, previous)


def _watch(etcd: EmbeddedEtcd, children: list[_Child], say: Say) -> None:
    """Start children again that end, until a signal comes. Raises `DtfError` where that is in vain."""
    while True:
        _wait_for_an_end(etcd, children)
        if etcd.wait(0):
            raise DtfError(f"the farm's etcd ended by itself: {etcd.why_it_ended()}")
        for child in children:
            if child.ended():
                if child.too_often():
                    raise DtfError(f"the {child.name} ends again and again: {child.last_words()}")
                say(f"the {child.name} has ended and is started again: {child.last_words()}")
                child.stop()
                child.start()


def _wait_for_an_end(etcd: EmbeddedEtcd, children: list[_Child]) -> None:
    pids = [etcd.pid, *(child.process.pid for child in children if child.process is not None)]
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(_pidfd(pid)) for pid in pids]
        select.select([file for file in files if file is not None], [], [], LOOK)


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    file = open_pidfd(pid)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _coordinator_arguments(home: FarmHome, endpoint: str, reach: Reach, strategy: str) -> list[str]:
    return [
        "coordinator", "--endpoint", endpoint, *reach.words, "--folder", str(home.folder / "files"),
        "--token-file", str(home.token), "--worker-grace", str(WORKER_GRACE), "--strategy", strategy,
        "--secrets-key", str(home.secrets_key),
    ]  # fmt: skip


def _worker_arguments(home: FarmHome, url: str, reach: Reach) -> list[str]:
    return [
        "worker", "--coordinator", url, "--token-file", str(home.token), "--folder", str(home.folder / "worker"),
        "--secrets", str(home.folder / "secrets"), *(["--ca", str(reach.ca)] if reach.ca else []),
    ]  # fmt: skip


def detach(home: FarmHome, reach: Reach, *, say: Say, strategy: str = "fair_share") -> int:
    """Start a farm in the background, and return an exit code once it is up, or has failed to come up."""
    home.make()
    log_path = home.folder / "up.log"
    with log_path.open("wb") as log_file:
        process = subprocess.Popen(
            [
                *[sys.executable, "-m", "dtf_lightning", "farm", "up", *reach.words, "--home", str(home.folder)],
                *["--strategy", strategy, *(["--ca", str(reach.ca)] if reach.ca else [])],
            ],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def decided() -> bool:
        running = RunningFarm.read(home.running)
        return process.poll() is not None or (running is not None and running.pid == process.pid)

    poll_until(decided, 2 * READY_TIMEOUT, "the farm to come up")
    say(log_path.read_text(errors="replace").rstrip())
    if process.poll() is None:
        say("it runs in the background: `dtf farm down` ends it")
        return 0
    return 1


def end_farm(home: FarmHome, *, say: Say) -> bool:
    """End the farm that runs on this machine; whether there was one."""
    running = RunningFarm.read(home.running)
    if running is None or not running.is_alive:
        say(f"no farm runs here (looked in {home.folder})")
        return False
    os.kill(running.pid, signal.SIGTERM)
    try:
        poll_until(lambda: not running.is_alive, 3 * STOP_TIMEOUT, f"process {running.pid} to end")
    except TimeoutError as error:
        raise DtfError(f"the farm does not end ({error}): look into {home.folder / 'up.log'}, or kill it") from error
    say("farm ended")
    return True
