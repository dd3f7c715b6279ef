"""Executors with a real keeper; `worker` is one for all tests of a file, so that the police sees what each leaves."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.worker import executor
from support.farm.worker import PATIENCE, Worker


@pytest.fixture(scope="module", autouse=True)
def output_first():
    """What an attempt has printed has been told when its end is, however slow the machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "LOG_FIRST", PATIENCE)
        yield


@pytest.fixture(scope="module")
def worker(output_first, tmp_path_factory: pytest.TempPathFactory):
    worker = Worker(tmp_path_factory.mktemp("worker"))
    yield worker
    worker.executor.close(0.0)


@pytest.fixture
def workers(tmp_path):
    """Makes executors on one folder, one after the other; what they leave is ended."""
    made = []

    def make(**options):
        made.append(Worker(tmp_path / "worker", **options))
        return made[-1]

    yield make
    for worker in made:
        worker.executor.leave()
    Worker(tmp_path / "worker").executor.close(0.0)
