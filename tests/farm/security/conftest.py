"""Two coordinators of one farm, for a file's tests together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from support.farm.doors import Farm
from support.farm.patience import patience

__all__ = ["patience"]


@pytest.fixture(scope="module")
def farm_of_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    store = MemoryStore()
    farm = Farm(store, tmp_path_factory.mktemp("farm"))
    for project in ("a", "b"):
        farm.admin.ask("PUT", f"/api/projects/{project}", {})
    farm.make("viewer")  # the first key is there
    yield farm
    farm.close()
    store.close()


@pytest.fixture
def farm(farm_of_all: Farm) -> Iterator[Farm]:
    yield farm_of_all
    farm_of_all.disconnect()
