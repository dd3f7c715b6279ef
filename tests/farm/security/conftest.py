"""A lab with its authority, and a coordinator with a certificate of it, on the in-memory store."""

from __future__ import annotations

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from support.farm.certificates import Lab, tls_settings
from support.farm.patience import patience
from support.farm.server import CoordinatorInThread

__all__ = ["patience"]


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
