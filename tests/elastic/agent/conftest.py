"""Agents run against the in-memory store, and the same scenarios against a real etcd."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from dtf_lightning.etcd import connect
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.store import Store
from support.elastic.agents import FakeCluster


@pytest.fixture
def run_id() -> str:
    return f"run-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.process)])
def make_cluster(request: pytest.FixtureRequest, backend, etcd, run_id) -> Iterator[Callable[..., FakeCluster]]:
    """Makes clusters that share one store and one run id."""
    made: list[FakeCluster] = []

    def client() -> Store:
        return connect(etcd.endpoint, quiet=True) if request.param == "etcd" else MemoryStore(backend)

    def make(**elastic: float) -> FakeCluster:
        made.append(FakeCluster(client, run_id, **elastic))
        return made[-1]

    yield make
    for cluster in made:
        cluster.__exit__()


@pytest.fixture
def cluster(make_cluster) -> FakeCluster:
    return make_cluster()
