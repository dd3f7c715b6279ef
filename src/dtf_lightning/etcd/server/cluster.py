"""`EtcdCluster`: etcd of several members on this machine, each of which can be killed, frozen and brought back.

For tests, storms and demonstrations: what is lost when a machine of a real cluster dies can be seen here.

Rules that this file guards:
- Every port is held by a socket that is bound but does not listen, for as long as the cluster lives: a member that was
  killed comes back on its own port.
- Members talk to each other over unix sockets, in the cluster's folder. All are ended by process id.
"""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.client import Client
from dtf_lightning.etcd.endpoints import parse_endpoints
from dtf_lightning.etcd.server.embedded import EtcdBinary, find_etcd
from dtf_lightning.etcd.server.process import ServerProcess
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire.version import EtcdVersion
from dtf_lightning.processes.freezing import freeze

START_TIMEOUT = 60.0
STATUS_TIMEOUT = 2.0
ELECTION = ("--heartbeat-interval", "20", "--election-timeout", "200")
"""A follower calls an election 200 to 400 ms after its leader's death; the default is five times that."""


def corruption_check(version: EtcdVersion) -> tuple[str, ...]:
    """Return the flags by which a member that starts compares its data with the others' and refuses to serve what differs.

    etcd #13766: releases 3.5.0 to 3.5.2 can lose consistency when they are killed under load. Without the check a member with
    other data than the rest serves them. It knows the others from its latest snapshot (`--snapshot-count`): before the first
    one there is nothing to compare with (seen with 3.5.1).
    """
    if version < EtcdVersion(3, 6, 0):
        return ("--experimental-initial-corrupt-check",)
    return ("--feature-gates", "InitialCorruptCheck=true")


@dataclass
class Member:
    """One etcd.

    Args:
        extra: flags.
        scheme: http or https.
        durable: a committed write survives a loss of power.
    """

    name: str
    directory: Path
    initial_cluster: str
    binary: EtcdBinary
    extra: Sequence[str] = ()
    scheme: str = "http"
    durable: bool = False
    placeholder: socket.socket = field(init=False)
    server: ServerProcess | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.placeholder = socket.socket()
        self.placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.placeholder.bind(("127.0.0.1", 0))

    @property
    def endpoint(self) -> str:
        """Where clients reach it; the same for as long as the cluster lives."""
        return f"127.0.0.1:{self.placeholder.getsockname()[1]}"

    def launch(self) -> None:
        """Start it without waiting: a member of a new cluster is ready only when most of the others are there."""
        client, peer = f"{self.scheme}://{self.endpoint}", f"unix://{self.name}:1"
        arguments = [
            str(self.binary.path),
            *("--name", self.name, "--data-dir", str(self.directory / f"{self.name}.data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster),
            *("--logger", "zap", "--log-level", "warn"),
            *(() if self.durable or self.binary.version < EtcdVersion(3, 5, 0) else ("--unsafe-no-fsync",)),
            *ELECTION,
            *corruption_check(self.binary.version),
            *self.extra,
        ]
        log = self.directory / f"{self.name}.log"
        self.server = ServerProcess(arguments, cwd=self.directory, log_path=log)

    def start(self) -> None:
        """Start it. Raises what `wait_until_ready` raises."""
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait until it serves. Raises `StoreError`, with its last words, if it does not."""
        assert self.server is not None
        self.server.wait_until_ready(START_TIMEOUT)

    def kill(self) -> None:
        """End it as `kill -9`; returns when it is dead."""
        assert self.server is not None
        self.server.stop(gently=False)
        self.server = None

    def freeze(self) -> None:
        """Stop it by SIGSTOP; returns when it does nothing any more."""
        assert self.server is not None
        freeze(self.server.pid)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.server is not None
        self.server.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it for good."""
        if self.server is not None:
            self.kill()  # SIGKILL ends a frozen one too
        self.placeholder.close()


class EtcdCluster:
    """Members `m0`, `m1`, ... in a temporary folder. A context manager.

    Args:
        extra: flags of every member.
        scheme: http or https.
        durable: a committed write survives a loss of power (fsync).
        binary: that all members run; `None`: the one that `find_etcd` finds.

    Raises `SettingsError` (no binary) and `StoreError` (a member did not get ready).
    """

    def __init__(
        self,
        num_members: int = 3,
        *,
        extra: Sequence[str] = (),
        scheme: str = "http",
        durable: bool = False,
        binary: EtcdBinary | None = None,
    ) -> None:
        self._cleanup = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-"))  # short: unix sockets' paths are limited
        self._cleanup.callback(shutil.rmtree, self.directory, ignore_errors=True)
        binary = binary or find_etcd()
        names = [f"m{number}" for number in range(num_members)]
        initial = ",".join(f"{name}=unix://{name}:1" for name in names)
        self.members = [Member(name, self.directory, initial, binary, extra, scheme, durable) for name in names]
        for member in self.members:
            self._cleanup.callback(member.close)
        try:
            for member in self.members:
                member.launch()
            for member in self.members:
                member.wait_until_ready()
        except BaseException:
            self._cleanup.close()
            raise

    def __enter__(self) -> EtcdCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def endpoint(self) -> str:
        """All members', with commas."""
        return ",".join(member.endpoint for member in self.members)

    def endpoint_from(self, first: Member) -> str:
        """Return all endpoints, in an order that makes a client connect to `first`."""
        others = [member for member in self.members if member is not first]
        return ",".join(member.endpoint for member in (first, *others))

    def leader(self) -> Member:
        """Return the member that leads now. Raises `TimeoutError` if for a minute none does."""
        leader = poll_until(self._find_leader, START_TIMEOUT, "a member that leads")
        assert leader is not None
        return leader

    def _find_leader(self) -> Member | None:
        """Ask every member, since the answer names only an id."""
        with ThreadPoolExecutor(len(self.members)) as pool:
            answers = list(pool.map(lambda member: _leads(member.endpoint), self.members))
        return next((member for member, leads in zip(self.members, answers, strict=True) if leads), None)


def _leads(endpoint: str) -> bool:
    try:
        told = status(endpoint)
    except StoreError:
        return False
    return bool(told.leader == told.header.member_id)


def status(endpoint: str) -> pb.StatusResponse:
    """Return a member's own account of itself. Raises `StoreError` if it does not answer."""
    client = Client(parse_endpoints(endpoint))
    try:
        return client.attempt(rpc.STATUS, pb.StatusRequest(), server=0, timeout=STATUS_TIMEOUT)
    finally:
        client.close()
