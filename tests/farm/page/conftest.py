"""One coordinator on the in-memory store, and what looks at its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.tokens import read_token
from support.farm.browsing import Browsing
from support.farm.patience import patience
from support.farm.server import CoordinatorInThread, PlayedWorker

__all__ = ["patience"]


@pytest.fixture(scope="module")
def memory() -> Iterator[MemoryStore]:
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture(scope="module")
def coordinator(memory: MemoryStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CoordinatorInThread]:
    coordinator = CoordinatorInThread(memory, tmp_path_factory.mktemp("farm"))
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()


@pytest.fixture(scope="module")
def token(coordinator: CoordinatorInThread) -> str:
    return read_token(Path(coordinator.token_file))


@pytest.fixture(scope="module")
def client(coordinator: CoordinatorInThread) -> Iterator[Client]:
    with coordinator.client() as client:
        client.connection.ask("GET", "/api/status")  # opens the connection that it keeps
        yield client


@pytest.fixture
def page(coordinator: CoordinatorInThread, token: str) -> Browsing:
    return Browsing(coordinator.url, token)


@pytest.fixture(scope="module")
def worker(coordinator: CoordinatorInThread, token: str) -> Iterator[PlayedWorker]:
    worker = PlayedWorker((coordinator.url,), token, cpu=4.0)
    worker.wait_until_welcome()
    worker.connection.ask("GET", "/api/status")
    yield worker
    worker.close()
