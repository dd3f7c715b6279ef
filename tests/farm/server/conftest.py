"""One coordinator and its client, on the in-memory store: what etcd adds is tested in the record's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.tokens import read_token
from support.farm.patience import patience
from support.farm.server import CoordinatorInThread, PlayedWorker

__all__ = ["patience"]


@pytest.fixture
def memory() -> Iterator[MemoryStore]:
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture
def coordinator(memory: MemoryStore, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[CoordinatorInThread]:
    """Its settings are what a test gives by `parametrize(..., indirect=True)`."""
    coordinator = CoordinatorInThread(memory, tmp_path, settings=getattr(request, "param", None))
    yield coordinator
    coordinator.stop()


@pytest.fixture
def client(coordinator: CoordinatorInThread) -> Iterator[Client]:
    with coordinator.client() as client:
        yield client


@pytest.fixture
def worker(coordinator: CoordinatorInThread) -> Iterator[PlayedWorker]:
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file))
    worker.wait_until_welcome()
    yield worker
    worker.close()
