"""The token of an attempt's command: of its own task and subtasks, for as long as the attempt counts."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.security.identity import Forbidden, Identity
from dtf_lightning.farm.security.ownership import refuse_powers, refuse_subtask
from dtf_lightning.farm.security.permissions import Role
from support.farm.doors import refused
from support.farm.server import PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def worker(farm_of_all):
    worker = PlayedWorker(farm_of_all.urls[:1], farm_of_all.own, name="w", cpu=8.0)
    worker.wait_until_welcome()
    yield worker
    worker.close()


class Running:
    """A task that runs, and its command's connection to the farm."""

    def __init__(self, farm, worker, **fields):
        self.task = new_task_id(time.time())
        self._worker = worker
        fields = {"command": ["true"], "project": "a", "permissions": ["submit"]} | fields
        farm.admin.ask("POST", "/api/tasks", {"tasks": [{"task_id": self.task, **fields}]})
        self.order = worker.next()
        while self.order.task != self.task:
            worker.end(self.order)
            self.order = worker.next()
        self.by = farm.connect(self.token(farm.admin))

    def token(self, connection):
        path = f"/api/tasks/{self.task}/token"
        return connection.ask("POST", path, revision=self.order.revision)["token"]

    def submit(self, **fields):
        one = {"task_id": new_task_id(time.time()), "command": ["true"], "project": "a"} | fields
        (told,) = self.by.ask("POST", "/api/tasks", {"tasks": [one]})["tasks"]
        return told["task_id"]

    def end(self):
        self._worker.end(self.order)


@pytest.fixture
def running(farm, worker):
    running = Running(farm, worker)
    yield running
    running.end()


def test_of_its_own_task_and_subtasks_alone(farm, worker, running):
    """Which are the plan of its id; nobody else's task, plan or list, no worker's affair and no token."""
    own, sub = running.by, running.submit()
    assert own.ask("GET", f"/api/tasks/{running.task}")["task_id"] == running.task
    assert own.ask("GET", f"/api/tasks/{sub}")["metadata"]["plan"] == running.task
    assert own.ask("GET", f"/api/plans/{running.task}")["plan_id"] == running.task
    own.ask("POST", f"/api/tasks/{sub}/cancel")
    other = new_task_id(time.time())
    farm.admin.ask(
        "POST", "/api/tasks", {"tasks": [{"task_id": other, "command": ["true"], "project": "a", "plan": "p"}]}
    )
    for method, path, fields in (
        ("GET", f"/api/tasks/{other}", {}),
        ("GET", f"/api/tasks/{other}/logs", {}),
        ("GET", "/api/tasks/ends", {"tasks": f"{sub},{other}"}),
        ("POST", f"/api/tasks/{other}/cancel", {}),
        ("GET", "/api/plans/p", {}),
        ("POST", "/api/plans/p/cancel", {}),
    ):
        with pytest.raises(FarmRefused) as caught:
            own.ask(method, path, **fields)
        assert caught.value.status == 403, path
        assert "reaches that and its subtasks" in str(caught.value), path
    for method, path in (
        ("GET", "/api/tasks"),
        ("GET", "/api/status"),
        ("POST", "/api/tokens"),
        ("PUT", "/api/secrets/a/A"),
        ("POST", f"/api/tasks/{running.task}/secrets?revision={running.order.revision}"),
        ("POST", f"/api/tasks/{running.task}/token?revision={running.order.revision}"),
        ("POST", f"/api/tasks/{running.task}/logs?revision={running.order.revision}&offset=0"),
    ):
        assert "this token's role is task" in str(refused(own.ask, method, path, {})), path


def test_what_it_submits_can_do_no_more_than_itself(farm, worker):
    """No other project or plan, no secret that it does not have, no submitting of others."""
    running = Running(farm, worker, secrets=[])
    for fields, said in (
        ({"project": "b"}, "limited to the project a"),
        ({"plan": "p"}, "and not the plan p"),
        ({"secrets": ["A"]}, "does not have the secret A"),
        ({"permissions": ["submit"]}, "submit no others"),
    ):
        assert said in str(refused(running.submit, **fields)), fields
    running.submit(permissions=["read"], plan=running.task)
    running.end()


def test_only_what_it_was_submitted_with(farm, worker):
    """One that may read cannot submit; one without permissions gets no token."""
    running = Running(farm, worker, permissions=["read"])
    assert running.by.ask("GET", f"/api/tasks/{running.task}")["task_id"] == running.task
    assert "`permissions: [submit]`" in str(refused(running.submit))
    running.end()
    with pytest.raises(FarmRefused, match="was submitted without `permissions`"):
        Running(farm, worker, permissions=[])


def test_it_ends_with_the_attempt(farm, worker, running):
    """At every coordinator, though its time is not over."""
    other = farm.connect(running.token(farm.admin), at=1)
    assert other.ask("GET", f"/api/tasks/{running.task}")["task_id"] == running.task
    ended = Running(farm, worker)
    ended.end()
    with contextlib.suppress(FarmRefused):
        while True:
            ended.by.ask("GET", f"/api/tasks/{ended.task}", wait=10)
    refusal = refused(ended.by.ask, "GET", f"/api/tasks/{ended.task}")
    assert (refusal.status, "counts no more" in str(refusal)) == (401, True)
    path = f"/api/tasks/{ended.task}/token"
    assert "does not count" in str(refused(farm.admin.ask, "POST", path, revision=ended.order.revision))


def test_a_worker_gets_that_of_its_own_attempt_alone(farm, running):
    own, other = (farm.connect(farm.token("worker", subject=name)) for name in ("w", "v"))
    assert running.token(own)
    assert "makes no such attempt" in str(refused(running.token, other))
    assert "attempt.token needs the role worker or admin" in str(
        refused(running.token, farm.connect(farm.token("developer")))
    )


IDENTITY = Identity(subject="t", role=Role.TASK, token="j", projects=frozenset("a"), expires=1.0, family="t", number=7)
names = st.lists(st.sampled_from(["A", "B", "C"]), max_size=3)


@given(names, names, st.lists(st.sampled_from(["read", "submit"]), max_size=2))
def test_powers_are_never_more(own, wanted, permissions):
    try:
        refuse_powers(IDENTITY, own, wanted, permissions)
    except Forbidden:
        assert not (set(wanted) <= set(own) and "submit" not in permissions)
    else:
        assert set(wanted) <= set(own)
        assert "submit" not in permissions


@given(st.one_of(st.none(), st.text(max_size=3), st.just("t")))
def test_only_the_plan_of_its_id(plan):
    if plan == "t":
        refuse_subtask(IDENTITY, "x", plan)
    else:
        with pytest.raises(Forbidden):
            refuse_subtask(IDENTITY, "x", plan)
