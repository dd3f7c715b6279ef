"""Arrays over HTTP: one submission of many instances, each tried again and recorded by itself."""

from __future__ import annotations

import queue
import time

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import array_id, instance_id, new_task_id
from dtf_lightning.farm.rules import arrays
from dtf_lightning.farm.rules.attempts import OutcomeKind
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process


def run_all(worker, count, end):
    """End so many attempts as `end` says, in the order in which they come."""
    seen = []
    for _ in range(count):
        order = worker.next()
        seen.append((order.specification.index, order.number))
        end(order)
    return seen


def test_each_instance_by_itself(client, worker, memory):
    array = client.submit(["x"], name="squares", array=5, retries=1)
    after = client.submit(["y"], after=[array])
    failing = {1: 1, 3: 2}  # instance -> how often it fails

    def end(order):
        index = order.specification.index
        failed = order.number <= failing.get(index, 0)
        worker.end(order, OutcomeKind.FAILED if failed else OutcomeKind.COMPLETED, exit_code=index if failed else 0)

    seen = run_all(worker, 7, end)
    assert sorted(seen) == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]
    info = client.wait(array, DEADLINE)
    assert (info.status, info.exit_code) == ("failed", 3)
    assert info.raw["results"]["counts"] == {"completed": 4, "failed": 1}
    assert info.reason == "1 of its 5 instances did not complete: 1 failed"
    assert client.wait(after, DEADLINE).status == "skipped"
    for index, (status, attempt) in enumerate([("completed", 1), ("completed", 2), ("completed", 1), ("failed", 2)]):
        one = client.task(f"{array}[{index}]")
        assert (one.task_id, one.status) == (instance_id(array, index), status)
        assert (one.raw["name"], one.raw["metadata"]["attempt"]) == (f"squares[{index}]", attempt)
    keys = FarmKeys("f")
    assert [kv.key for kind in (Kind.TASK, Kind.ATTEMPT) for kv in memory.range(keys.folder(kind)).kvs] == []


def test_what_comes_after_all_of_them(client, worker):
    before = client.submit(["a"])
    array = client.submit(["x"], array=2, after=[before])
    after = client.submit(["y"], after=[array])
    assert client.task(array).status == "waiting"
    first = worker.next()
    assert first.task == before
    worker.end(first)
    assert sorted(run_all(worker, 2, worker.end)) == [(0, 1), (1, 1)]
    last = worker.next()
    assert last.task == after
    worker.end(last)
    assert (client.task(array).exit_code, client.wait(after, DEADLINE).status) == (0, "completed")


def test_submitted_in_one_write_and_born_a_few_at_a_time(client, memory):
    """10,000 instances are one write and one key; nobody can run them, so no more than the window come to life."""
    keys = FarmKeys("f")
    array = client.submit(["x"], array=10_000, needs={"gpu": 1})
    begun = {"count": 10_000, "begun": arrays.WINDOW}
    poll_until(lambda: client.task(array).raw["metadata"]["array"] == begun, DEADLINE, "the window to be born")
    assert len(memory.range(keys.folder(Kind.TASK)).kvs) == arrays.WINDOW + 1
    writes = {kv.mod_revision for kv in memory.range(keys.folder(Kind.TASK)).kvs}
    assert len(writes) == 1 + arrays.WINDOW // arrays.AT_ONCE
    info = client.task(array)
    assert info.status == "running"
    assert info.reason == "of its 10000 instances 0 have ended, 0 run, and 10000 wait"
    unborn = client.task(f"{array}[9999]")
    assert (unborn.status, unborn.raw["name"]) == ("pending", "[9999]")
    with pytest.raises(TimeoutError):
        client.wait(instance_id(array, 9_999), 0.3)
    with pytest.raises(FarmRefused, match="knows no task"):
        client.task(f"{array}[10000]")


def test_cancelled(client, worker, monkeypatch):
    """What runs is ended, what waits is recorded as cancelled, and the rest never comes to life."""
    monkeypatch.setattr(arrays, "WINDOW", 2)
    array = client.submit(["x"], array=50)
    orders = [worker.next(), worker.next()]
    assert client.cancel(array, "not wanted") == "cancelled"
    ended = {worker.cancelled.get(timeout=DEADLINE).task for _ in orders}
    assert ended == {order.task for order in orders}
    for order in orders:
        info = client.wait(order.task, DEADLINE)
        assert (info.status, info.reason) == ("cancelled", "its array was cancelled")
    assert client.task(f"{array}[49]").status == "cancelled"
    with pytest.raises(queue.Empty):
        worker.orders.get(timeout=0.3)


def test_in_a_plan(client, worker):
    plan = new_task_id(time.time())
    text = "tasks:\n  squares: {run: x, array: {count: 3}}\n  sum: {run: y, after: squares}\n"
    told = client.connection.ask("POST", "/api/plans", {"plan_id": plan, "plan": text})["tasks"]
    squares, total = (one["task_id"] for one in told)
    run_all(worker, 4, worker.end)
    ended = {info.task_id: info.status for info in client.plan_ends(plan, [squares, total])}
    assert ended == {squares: "completed", total: "completed"}


def test_tried_again_when_it_is_done(client, worker):
    """As a whole, in a plan too; or one instance of it, which keeps its number."""
    plan = new_task_id(time.time())
    text = "tasks:\n  squares: {run: x, array: 2}\n"
    (told,) = client.connection.ask("POST", "/api/plans", {"plan_id": plan, "plan": text})["tasks"]
    array = told["task_id"]
    run_all(worker, 2, lambda order: worker.end(order, OutcomeKind.FAILED))
    assert client.wait(array, DEADLINE).status == "failed"
    one = client.connection.ask("POST", f"/api/tasks/{instance_id(array, 1)}/retry")["task_id"]
    order = worker.next()
    assert (order.task, order.specification.index, order.specification.array_id) == (one, 1, "")
    worker.end(order)
    assert client.wait(one, DEADLINE).status == "completed"
    (again,) = client.connection.ask("POST", f"/api/plans/{plan}/retry")["tasks"]
    assert again["retry_of"] == array
    assert sorted(run_all(worker, 2, worker.end)) == [(0, 1), (1, 1)]
    assert client.wait(again["task_id"], DEADLINE).status == "completed"


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (100_001, "less than or equal to 100000"),
        ({"number": 3}, "a number of instances, or"),
        (-1, "greater than or equal"),
    ],
)
def test_refused(client, array, told):
    task = array_id(new_task_id(time.time()))
    with pytest.raises(FarmRefused, match=told):
        client.submit_all([{"task_id": task, "command": ["x"], "array": array}])


def test_an_id_without_room_for_numbers(client):
    with pytest.raises(FarmRefused, match="must end with six zeros"):
        client.submit_all([{"task_id": new_task_id(time.time(), 1), "command": ["x"], "array": 3}])
