"""Submissions under idempotency keys: of tasks, of tasks in plans, and of plans."""

from __future__ import annotations

import functools
import json
import threading
import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.routes import plans
from dtf_lightning.farm.server.schedules.expanding import SentPlan
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process

PLAN = "{name: p, key: K, tasks: {a: {run: a}, b: {run: b, after: a}}}"
PARTS = """
tasks:
  build: {run: b, key: build-1}
  test: {run: "t {{matrix.n}}", after: build, matrix: {n: [1, 2]}, key: "test-{{matrix.n}}"}
  report: {run: r, after: test}
"""


class ThreadsOf:
    """A method that notes the names of the threads that call it."""

    def __init__(self, method) -> None:
        self._method = method
        self.threads: list[str] = []

    def __get__(self, of, _=None):
        return self if of is None else functools.partial(self._called, of)

    def _called(self, of, *arguments):
        self.threads.append(threading.current_thread().name)
        return self._method(of, *arguments)


class TestATask:
    def test_the_same_request_is_the_same_task_and_another_is_refused(self, client, worker):
        """With what differs, whether the first one is done or not."""
        fields = {"needs": {"cpu": 1}, "key": "k", "timeout": 9.0}
        first = client.submit(["x"], environment={"A": "1"}, **fields)
        for end in (False, True):
            if end:
                worker.end(worker.next())
                client.wait(first, DEADLINE)
            assert client.submit(["x"], environment={"A": "1"}, **fields) == first
            with pytest.raises(FarmRefused) as refusal:
                client.submit(["x", "y"], environment={"A": "2"}, **fields)
            assert refusal.value.status == 409
            assert str(refusal.value) == (
                f"another request was submitted under the key 'k', as task {first}: command was ['x'], now it is ['x', 'y']; "
                "environment.A was '1', now it is '2'. Choose another key, or ask for the same"
            )
        assert len(list(client.tasks())) == 1

    def test_what_comes_after_it_comes_after_the_earlier_one(self, client, worker):
        first = client.submit(["x"], key="k")
        now = time.time()
        again, after = new_task_id(now), new_task_id(now)
        told = client.submit_all(
            [
                {"task_id": again, "command": ["x"], "key": "k"},
                {"task_id": after, "command": ["y"], "dependencies": [again]},
            ]
        )
        assert [one["task_id"] for one in told] == [first, after]
        assert client.task(after).raw["dependencies"] == [first]
        worker.end(worker.next())
        assert worker.next().task == after


class TestTasksOfAPlan:
    def test_only_what_is_new_runs(self, client, worker, monkeypatch):
        """Also where a plan is submitted in several parts."""
        monkeypatch.setattr(plans, "AT_ONCE", 1)
        first = client.send_plan(PARTS)
        for _ in range(4):
            worker.end(worker.next())
        for one in first["tasks"]:
            client.wait(one["task_id"], DEADLINE)
        second = client.send_plan(PARTS)
        ids = [{one["name"]: one["task_id"] for one in told["tasks"]} for told in (first, second)]
        assert [one["submission"] for one in second["tasks"]] == ["same key"] * 3 + ["new"]
        assert all(ids[0][name] == ids[1][name] for name in ("build", "test[1]", "test[2]"))
        assert worker.next().task == ids[1]["report"] != ids[0]["report"]

    def test_by_the_command(self, client, worker, coordinator, tmp_path, monkeypatch, capsys):
        """It follows the tasks that were there before with those that are new."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "plan.yaml").write_text("tasks: {build: {run: b, key: build-1}, test: {run: t, after: build}}")
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file), "--no-source"]
        earlier = client.submit(["sh", "-ec", "b"], name="build", key="build-1")
        worker.end(worker.next())
        client.wait(earlier, DEADLINE)
        assert main(["farm", "submit", *where, "plan.yaml"]) == 0
        worker.end(worker.next(), OutcomeKind.FAILED, exit_code=3)
        told = capsys.readouterr()
        assert "2 tasks of the plan plan" in told.err
        assert "1 submitted before" in told.err
        (test,) = client.tasks(plan=told.out.strip())
        assert test.raw["name"] == "test"
        client.wait(test.task_id, DEADLINE)
        (tmp_path / "plan.yaml").write_text("tasks: {build: {run: b, key: build-1}}")
        assert main(["farm", "run", *where, "--json", "plan.yaml"]) == 0
        assert [one["task_id"] for one in json.loads(capsys.readouterr().out)["tasks"]] == [earlier]


class TestAPlan:
    def test_the_same_plan_is_submitted_once_and_another_is_refused(self, client, worker):
        first, second = client.send_plan(PLAN), client.send_plan(PLAN)
        assert second["plan_id"] == first["plan_id"]
        assert [one["submission"] for one in first["tasks"] + second["tasks"]] == ["new", "new", "known", "known"]
        for _ in range(2):
            worker.end(worker.next())
        for one in first["tasks"]:
            client.wait(one["task_id"], DEADLINE)
        assert client.submit_plan(PLAN) == first["plan_id"]
        with pytest.raises(FarmRefused) as refusal:
            client.send_plan(PLAN.replace("run: b", "run: bb"))
        assert refusal.value.status == 409
        assert (
            f"another plan was submitted under the key 'K', as {first['plan_id']}: of its task 'b' command was"
            in str(refusal.value)
        )
        with pytest.raises(FarmRefused, match="it has more tasks"):
            client.send_plan("{name: p, key: K, tasks: {a: {run: a}}}")
        with pytest.raises(FarmRefused, match="it has no task 'c' in this place"):
            client.send_plan(PLAN.replace("b, after: a}", "b, after: a}, c: {run: c}"))
        assert len(list(client.tasks())) == 2

    def test_its_text_is_read_in_threads(self, client, coordinator, monkeypatch):
        """A plan may have many thousand tasks, and the event loop is everybody's."""
        monkeypatch.setattr(SentPlan, "expand", ThreadsOf(SentPlan.expand))
        client.send_plan(PLAN)
        with pytest.raises(FarmRefused):
            client.send_plan(PLAN.replace("run: b", "run: bb"))
        assert len(SentPlan.expand.threads) > 4
        assert "test-loop" not in SentPlan.expand.threads

    def test_a_plan_that_was_refused_leaves_its_key(self, client, worker):
        """Nothing came of it: the key is the next one's."""
        unknown = new_task_id(time.time())
        with pytest.raises(FarmRefused, match="which this farm does not know"):
            client.send_plan(PLAN.replace("after: a", f"after: {unknown}"))
        told = client.send_plan(PLAN)
        assert [one["submission"] for one in told["tasks"]] == ["new", "new"]

    def test_by_the_command(self, client, worker, coordinator, tmp_path, monkeypatch, capsys):
        """The second of them shows the end of the first."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "plan.yaml").write_text(PLAN)
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file), "--no-source"]
        assert main(["farm", "submit", *where, "plan.yaml"]) == 0
        plan = capsys.readouterr().out.strip()
        worker.end(worker.next())
        worker.end(worker.next(), OutcomeKind.FAILED, exit_code=7)
        assert main(["farm", "run", *where, "--json", "plan.yaml"]) == 7
        told = capsys.readouterr()
        assert json.loads(told.out)["plan_id"] == plan
        assert "2 submitted before" in told.err
