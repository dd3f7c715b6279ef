"""The data of the farm's page, in one answer."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.rules.attempts import OutcomeKind
from support.farm.server import DEADLINE, wait_until_running

pytestmark = pytest.mark.process


def test_the_farm_as_it_is_now(client, worker):
    """Three tasks run or have run, one waits; the latest result and the latest task come first."""
    tasks = [client.submit(["x"], name=f"n{number}") for number in range(4)]
    client.submit(["y"], after=[tasks[3]])
    for kind in (OutcomeKind.COMPLETED, OutcomeKind.FAILED):
        order = worker.next()
        worker.end(order, kind)
        client.wait(order.task, DEADLINE)
    running = worker.next()
    worker.start(running)
    wait_until_running(client, running.task)
    worker.next()
    told = client.connection.ask("GET", "/api/dashboard")
    assert told["counts"] == {
        "tasks": {"waiting": 1, "pending": 0, "assigned": 1, "running": 1},
        "workers": {"busy": 1},
    }
    assert [task["name"] for task in told["running"]] == ["n3", "n2"]
    assert [(result["test_id"], result["status"]) for result in told["latest_results"]] == [
        ("n1", "failure"),
        ("n0", "success"),
    ]
    assert told["workers"][0]["worker_id"] == "w"
    assert told["cluster"]["leader_id"] == told["status"]["leader"] == told["leader"]["leader_id"] == "c0"
    assert told["revision"] > 0
    few = client.connection.ask("GET", "/api/dashboard", limit=1)
    assert [len(few[name]) for name in ("running", "latest_results", "workers")] == [1, 1, 1]
