"""Lists, their filters, orders and pages, and plans that are submitted as they are written."""

from __future__ import annotations

import time

import pytest

from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server import pool as pool_module
from dtf_lightning.farm.server.lists import tasks as tasks_module
from dtf_lightning.farm.server.models import when
from support.farm.server import DEADLINE, wait_until_running

pytestmark = pytest.mark.process


def ids(client: Client, **filters) -> list[str]:
    return [info.task_id for info in client.tasks(**filters)]


@pytest.fixture
def mixed(client, worker, monkeypatch):
    """Ten tasks: four done, of which memory holds one, two with the worker, two pending, two waiting for another."""
    monkeypatch.setattr(pool_module, "RECENT", 1)
    monkeypatch.setattr(tasks_module, "SLICE", 3)
    for project in ("a", "b"):
        client.set_project(project)
    now = time.time()
    tasks = [new_task_id(now + number / 1000) for number in range(10)]
    for number, task in enumerate(tasks):
        client.submit(
            ["x"],
            task_id=task,
            name=f"n{number % 3}",
            project="a" if number % 2 else "b",
            plan="p" if number < 5 else "q",
            after=[tasks[7]] if number > 7 else [],
        )
    for number in range(4):
        order = worker.next()
        worker.end(order, OutcomeKind.FAILED if number == 1 else OutcomeKind.COMPLETED)
        client.wait(order.task, DEADLINE)
    running = [worker.next(), worker.next()]
    worker.start(running[0])
    wait_until_running(client, running[0].task)
    return tasks


class TestTasks:
    def test_all_of_them_newest_first(self, client, mixed):
        """Also those that memory does not hold any more, and in pages of any size."""
        for limit in (1, 3, 10, 1000):
            assert ids(client, limit=limit) == mixed[::-1]
        assert ids(client, limit=3, sort="created") == mixed

    @pytest.mark.parametrize("sort", ["name", "-project", "status", "-started", "ended", "-worker"])
    def test_pages_of_every_order_join(self, client, mixed, sort):
        whole = ids(client, sort=sort)
        assert sorted(whole) == mixed
        for limit in (1, 4):
            assert ids(client, sort=sort, limit=limit) == whole
        shown = [info.raw for info in client.tasks(sort=sort)]
        if (field := sort.removeprefix("-")) in ("name", "status"):
            assert [task[field] for task in shown] == sorted(task[field] for task in shown)
        if sort == "ended":
            assert [task["end_time"] is None for task in shown] == [False] * 4 + [True] * 6

    def test_filters(self, client, mixed):
        statuses = {task: client.task(task).status for task in mixed}
        counts = {"waiting": 2, "pending": 2, "assigned": 1, "running": 1, "completed": 3, "failed": 1}
        for status, number in counts.items():
            found = ids(client, status=status, sort="created", limit=1)
            assert (found, len(found)) == ([task for task in mixed if statuses[task] == status], number)
        assert ids(client, project="a") == mixed[::-2]
        assert ids(client, plan="q", limit=2) == mixed[:4:-1]
        assert ids(client, name="n2", sort="created") == mixed[2::3]
        assert ids(client, worker="w", sort="created") == mixed[:6]
        assert ids(client, worker="nobody") == []
        assert ids(client, search="N2", sort="created") == mixed[2::3]
        assert ids(client, search=mixed[4][:36]) == [mixed[4]]
        assert ids(client, search="X", limit=3) == mixed[::-1]
        assert ids(client, search="%") == []
        middle = client.task(mixed[5]).raw["create_time"]
        assert ids(client, created_before=middle) == mixed[4::-1]
        assert set(ids(client, created_after=middle)) <= set(mixed[4:])
        assert ids(client, created_after=when(time.time() + 3600)) == []

    @pytest.mark.parametrize(
        ("asked", "told"),
        [
            ({"status": "runing"}, "status: 'runing' is none; expected one of waiting, pending"),
            ({"sort": "nme"}, "cannot be sorted by 'nme'"),
            ({"cursor": "x"}, "none of this farm's"),
            ({"created_after": "yesterday"}, "created_after: 'yesterday' is no time"),
            ({"limit": 0}, "limit"),
        ],
    )
    def test_what_cannot_be_asked(self, client, asked, told):
        with pytest.raises(FarmRefused, match=told) as caught:
            client.connection.ask("GET", "/api/tasks", **asked)
        assert caught.value.status == 422

    def test_a_task_that_ends_while_the_list_is_made_is_in_it_once(self, client, worker, coordinator):
        """It was looked at before it ended, and the database knows it by then."""
        task = client.submit(["x"])
        order = worker.next()
        for _ in range(20):
            if order is not None:
                worker.end(order)
                order = None
            assert ids(client) == [task]

    def test_the_farms_numbers_know_who_waits(self, client, mixed):
        assert client.status()["tasks"] == {"waiting": 2, "pending": 2, "assigned": 1, "running": 1}


class TestOthers:
    def test_results_in_another_order(self, client, mixed):
        for sort in ("created", "-status", "-ended", "name"):
            whole = [result["task_id"] for result in client.results(sort=sort)]
            assert sorted(whole) == mixed[:4]
            assert [result["task_id"] for result in client.results(sort=sort, limit=1)] == whole

    def test_workers(self, client, worker):
        def names(**asked):
            return [one["worker_id"] for one in client.connection.ask("GET", "/api/workers", **asked)["workers"]]

        client.change_worker("w", "cordon")
        assert names(status="online") == names(sort="-tasks") == names(coordinator_id="c0") == ["w"]
        assert names(status="offline") == names(label="x") == names(coordinator_id="c1") == []
        assert [one["worker_id"] for one in client.workers()] == ["w"]
        with pytest.raises(FarmRefused, match="cannot be sorted by 'name'"):
            names(sort="name")


PLAN = """
name: p
tasks:
  build: {run: b}
  test: {run: "t {{matrix.n}}", after: build, matrix: {n: [1, 2]}}
"""


class TestPlans:
    def test_submitted_twice_is_once(self, client, worker):
        plan = new_task_id(time.time())
        for _ in range(2):
            assert client.submit_plan(PLAN, plan_id=plan) == plan
        assert client.plan(plan)["counts"] == {"assigned": 1, "waiting": 2}
        worker.end(worker.next())
        for order in (worker.next(), worker.next()):
            worker.end(order, OutcomeKind.FAILED if order.specification.name == "test[2]" else OutcomeKind.COMPLETED)
            client.wait(order.task, DEADLINE)
        told = client.plan(plan)
        assert (told["counts"], told["total"], told["done"]) == ({"completed": 2, "failed": 1}, 3, 3)
        assert [info.raw["name"] for info in client.tasks(plan=plan, sort="name")] == ["build", "test[1]", "test[2]"]

    def test_another_plan_under_its_id(self, client):
        plan = client.submit_plan(PLAN)
        with pytest.raises(FarmRefused, match="another plan was submitted under the id") as caught:
            client.submit_plan(PLAN.replace("run: b", "run: c"), plan_id=plan)
        assert caught.value.status == 409

    def test_as_json(self, client):
        plan = client.submit_plan({"tasks": {"a": {"run": "x"}}})
        (task,) = client.tasks(plan=plan)
        assert task.raw["name"] == "a"

    @pytest.mark.parametrize(
        ("body", "told"),
        [
            ({"plan": "tasks: {a: {rn: x}}"}, "the plan:1:13: .*'rn'"),
            ({"plan": "tasks: {a: {run: x}}", "plan_id": "p"}, "'p' is no UUID of version 7"),
            ({"plan": "tasks: {a: {run: x}}", "folder": "../up"}, "must lie in the task's own workspace"),
            ({"plan": "tasks: {a: {run: x}}", "source": "0"}, "'0' is no digest"),
            ({"plan": 7}, "plan"),
            ({"pln": ""}, "did you mean 'plan'"),
        ],
    )
    def test_what_cannot_work(self, client, body, told):
        with pytest.raises(FarmRefused, match=told) as caught:
            client.connection.ask("POST", "/api/plans", {"plan_id": new_task_id(time.time())} | body)
        assert caught.value.status == 422

    def test_one_that_nobody_knows(self, client):
        with pytest.raises(FarmRefused, match="knows no plan 'p'") as caught:
            client.plan("p")
        assert caught.value.status == 404
