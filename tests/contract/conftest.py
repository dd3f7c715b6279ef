"""Every contract test runs in three worlds: in memory, on one etcd, on three members."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtf_lightning.etcd import client
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Store
from support.etcd_cluster import LATE_ELECTIONS
from support.store_worlds import EtcdWorld, MemoryWorld, World


@pytest.fixture(scope="module")
def shared_cluster() -> Iterator[EtcdCluster]:
    """Three members that nobody may harm; of one file, as members that idle cost a tenth of a processor."""
    with EtcdCluster(extra=LATE_ELECTIONS) as cluster:
        yield cluster


@pytest.fixture(params=["memory", "etcd", "three-members"])
def world(
    request: pytest.FixtureRequest, etcd: EmbeddedEtcd, shared_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch
) -> World:
    if request.param == "memory":
        return MemoryWorld()
    # Nobody is harmed here: a member that gets no processor for half a second is not to be left, with a write under way.
    monkeypatch.setattr(client, "ATTEMPT", 60.0)
    server: EmbeddedEtcd | EtcdCluster = request.getfixturevalue(
        "etcd" if request.param == "etcd" else "shared_cluster"
    )
    return EtcdWorld(server.endpoint)


@pytest.fixture
def store(world: World) -> Iterator[Store]:
    connected = world.client()
    yield connected
    connected.close()


@pytest.fixture
def other(world: World) -> Iterator[Store]:
    """A second client of the same etcd."""
    connected = world.client()
    yield connected
    connected.close()
