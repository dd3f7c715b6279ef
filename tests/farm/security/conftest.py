"""A lab with its authority, a coordinator with a certificate of it, and two coordinators of one farm: on in-memory stores."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from support.farm.certificates import Lab, tls_settings
from support.farm.doors import Farm, refusal_of
from support.farm.patience import patience
from support.farm.server import DEADLINE, CoordinatorInThread

__all__ = ["patience"]


@pytest.fixture(scope="module")
def farm_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    store = MemoryStore()
    farm = Farm(store, tmp_path_factory.mktemp("farm"))
    for project in ("a", "b"):
        farm.admin.ask("PUT", f"/api/projects/{project}", {})
    first = farm.connect(farm.token("viewer"), at=1)
    poll_until(lambda: refusal_of(first) is None, DEADLINE, "the other coordinator to hear of the first key")
    farm.disconnect()
    yield farm
    farm.close()
    store.close()


@pytest.fixture
def farm(farm_of_all: Farm) -> Iterator[Farm]:
    yield farm_of_all
    farm_of_all.disconnect()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab") / "certificates")


@pytest.fixture(scope="module")
def memory():
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture(scope="module")
def coordinator(memory, lab, tmp_path_factory):
    """With TLS. Its certificate's files are its own: a test may put others in their place."""
    made = lab.issue("coordinator")
    coordinator = CoordinatorInThread(memory, tmp_path_factory.mktemp("farm"), settings=tls_settings(made))
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()
