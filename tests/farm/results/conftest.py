"""These tests run on the in-memory twin and on a real etcd, under a farm of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Store
from support.store_worlds import EtcdWorld


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest, etcd: EmbeddedEtcd) -> Iterator[Store]:
    client = MemoryStore() if request.param == "memory" else EtcdWorld(etcd.endpoint).client()
    yield client
    client.close()


@pytest.fixture
def farm(prefix: str) -> str:
    """The name of a farm that nobody else uses."""
    return prefix.split("/")[2]
