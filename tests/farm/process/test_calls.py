"""Calls of functions by a real worker's processes, on one farm for all tests of this file."""

from __future__ import annotations

import sys

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.sources import pack
from dtf_lightning.farm.tokens import read_token
from support.farm.patience import patience
from support.farm.server import CoordinatorInThread, WorkerInThread

__all__ = ["patience"]

pytestmark = pytest.mark.process

WAIT = 240.0


@pytest.fixture(scope="module")
def farm(tmp_path_factory):
    """Its client; the farm allows cloudpickle."""
    folder = tmp_path_factory.mktemp("farm")
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, folder, settings={"security.allow_pickle": True})
    coordinator.loop.start_threads()
    worker = WorkerInThread(coordinator.url, read_token(coordinator.token_file), folder / "w", "w")
    worker.start_threads()
    with coordinator.client() as client:
        left = client.wait(client.submit(["sh", "-c", "echo x > $DTF_FARM_RESULTS/x; echo x"]), WAIT)
        assert left.status == "completed"  # from now on all threads of the farm are there
        yield client
    worker.close()
    coordinator.stop()
    store.close()


def test_a_plans_calls(farm, tmp_path):
    """By import of a module that came along, in the worker's own Python; the value, the reason and the output."""
    (tmp_path / "app.py").write_text(
        "import sys\n"
        "def where(name):\n    print('hello')\n    return [name, sys.executable]\n"
        "def fails():\n    raise ValueError('no such file')\n"
    )
    source = farm.send_source(pack(tmp_path))
    plan = {
        "tasks": {
            "where": {"call": "app:where", "kwargs": {"name": "x"}},
            "fails": {"call": "app:fails", "after": "where"},
        }
    }
    farm.submit_plan(plan, plan_id=(plan_id := _id()), source=source)
    where, fails = sorted(farm.tasks(plan=plan_id), key=lambda task: task.raw["name"], reverse=True)
    where, fails = farm.wait(where.task_id, WAIT), farm.wait(fails.task_id, WAIT)
    assert where.raw["results"]["returned"] == {"value": ["x", sys.executable]}, where.reason
    assert b"".join(farm.logs(where.task_id)) == b"hello\n"
    assert (fails.status, fails.exit_code) == ("failed", 1)
    assert fails.reason == "ValueError: no such file; exit code 1"
    assert b"app.py" in b"".join(farm.logs(fails.task_id))


def _id() -> str:
    import time

    from dtf_lightning.farm.record.task_id import new_task_id

    return new_task_id(time.time())
