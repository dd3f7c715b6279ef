"""Tasks that are done are tried again: as new tasks, with what was skipped because of them."""

from __future__ import annotations

import contextlib
import json
import queue
import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server import pool
from dtf_lightning.farm.server.clients import retries
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process


def submit(client, command: str, **fields) -> str:
    return client.submit(command.split(), **fields)


def run_all(client, worker, plays) -> None:
    """Play a worker until every task is done. `plays`: word of the command -> how it ends; else it completes."""

    def over() -> bool:
        with contextlib.suppress(queue.Empty):
            order = worker.orders.get_nowait()
            worker.end(order, plays.get(order.specification.command[0], OutcomeKind.COMPLETED))
        return all(task.done for task in client.tasks())

    poll_until(over, DEADLINE, "every task to be done")


class TestATask:
    def test_is_submitted_again_as_it_was(self, client, worker):
        """The old one stays what it is: its result is recorded once."""
        task = submit(
            client,
            "train --fast",
            name="t",
            environment={"A": "1"},
            priority=3,
            timeout=9.0,
            key="k",
            artifacts=["*.txt"],
        )
        first = worker.next()
        worker.end(first, OutcomeKind.FAILED)
        assert client.wait(task, DEADLINE).status == "failed"
        again = client.retry(task)
        second = worker.next()
        assert second.task == again != task
        worker.end(second)
        told = client.wait(again, DEADLINE)
        assert (told.status, told.raw["metadata"]["retry_of"]) == ("completed", task)
        assert client.task(task).status == "failed"
        assert client.task(task).raw["metadata"]["retry_of"] is None
        asked, was = second.specification, first.specification
        assert (asked.command, asked.environment, asked.timeout) == (was.command, was.environment, was.timeout)
        assert (asked.priority, asked.artifacts, asked.name) == (3, ("*.txt",), "t")
        assert (asked.retry_of, asked.key, was.key) == (task, "", "k")

    def test_that_is_not_done_is_refused(self, client, worker):
        task = submit(client, "x")
        worker.start(worker.next())
        with pytest.raises(FarmRefused, match="only a task that has ended can be tried again") as refusal:
            client.retry(task)
        assert refusal.value.status == 422

    def test_that_nobody_knows_is_not_found(self, client):
        for retry in (client.retry, client.retry_plan):
            with pytest.raises(FarmRefused, match="knows no task") as refusal:
                retry(new_task_id(time.time()))
            assert refusal.value.status == 404

    def test_asked_for_twice_is_one_retry(self, client, worker):
        """As after a lost answer, also when the new task has ended meanwhile."""
        task = submit(client, "x")
        worker.end(worker.next(), OutcomeKind.FAILED)
        client.wait(task, DEADLINE)
        retry_id = new_task_id(time.time())
        ask = lambda: client.connection.ask("POST", f"/api/tasks/{task}/retry", retry_id=retry_id)  # noqa: E731
        first = ask()
        assert ask()["task_id"] == first["task_id"]
        worker.end(worker.next(), OutcomeKind.FAILED)
        client.wait(first["task_id"], DEADLINE)
        assert ask()["task_id"] == first["task_id"]
        assert len(list(client.tasks())) == 2

    def test_its_specification_outlives_etcd(self, client, worker, memory, coordinator, monkeypatch):
        """Its result has left memory and etcd; the database of results has what was asked for."""
        task = submit(client, "x --long")
        worker.end(worker.next(), OutcomeKind.FAILED)
        client.wait(task, DEADLINE)
        assert next(iter(client.results(task_id=task)))["metadata"]["outcome"] == "failed"
        monkeypatch.setattr(pool, "RECENT", 0)
        other = submit(client, "y")
        worker.end(worker.next())
        client.wait(other, DEADLINE)
        assert memory.delete(f"/dtf/farm/f/done/{task}")
        again = client.retry(task)
        assert worker.next().task == again


class TestAPlan:
    def test_skipped_dependants_come_with_the_task(self, client, worker):
        build = submit(client, "build", plan="p")
        test = submit(client, "test", plan="p", after=[build])
        pack = submit(client, "pack", plan="p", after=[test])
        clean = submit(client, "clean", plan="p", after_any=[test])
        other = submit(client, "other", plan="q", after=[build])
        run_all(client, worker, {"build": OutcomeKind.FAILED})
        assert {task: client.task(task).status for task in (build, test, pack, clean, other)} == {
            build: "failed", test: "skipped", pack: "skipped", clean: "completed", other: "skipped"
        }  # fmt: skip
        again = client.retry(build)
        new = {
            task.raw["metadata"]["retry_of"]: task
            for task in client.tasks(plan="p")
            if task.raw["metadata"]["retry_of"]
        }
        assert set(new) == {build, test, pack}
        assert new[build].task_id == again
        assert new[test].raw["dependencies"] == [again]
        assert new[pack].raw["dependencies"] == [new[test].task_id]
        run_all(client, worker, {})
        assert {client.task(task.task_id).status for task in new.values()} == {"completed"}
        assert client.retry_plan("p") == {}, "every chain has completed"

    def test_what_failed_of_it_in_pages(self, client, worker, monkeypatch):
        """Those of later pages come after those of earlier ones, which have failed again by then."""
        monkeypatch.setattr(retries, "AT_ONCE", 2)
        first = [submit(client, f"fail {number}", plan="p") for number in range(4)]
        good = submit(client, "good", plan="p")
        gather = submit(client, "gather", plan="p", after=[*first, good])
        run_all(client, worker, {"fail": OutcomeKind.FAILED})
        again = client.retry_plan("p")
        assert set(again) == {*first, gather}
        told = client.task(again[gather]).raw
        assert set(told["dependencies"]) == {again[task] for task in first}
        run_all(client, worker, {})
        assert client.task(again[gather]).status == "completed"

    def test_one_that_fails_again_is_tried_again_once_more(self, client, worker):
        task = submit(client, "x", plan="p")
        for _ in range(2):
            worker.end(worker.next(), OutcomeKind.FAILED)
            client.wait(task, DEADLINE)
            (task,) = client.retry_plan("p").values()
        worker.end(worker.next())
        assert client.wait(task, DEADLINE).status == "completed"
        assert client.retry_plan("p") == {}

    def test_on_the_command_line(self, client, worker, coordinator, capsys):
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        task = submit(client, "x", plan="p")
        worker.end(worker.next(), OutcomeKind.FAILED)
        client.wait(task, DEADLINE)
        assert main(["farm", "retry", *where, task]) == 0
        again = capsys.readouterr().out.strip()
        assert client.task(again).raw["metadata"]["retry_of"] == task
        assert main(["farm", "retry", *where, again]) == 2
        assert "only a task that has ended" in capsys.readouterr().err
        worker.end(worker.next(), OutcomeKind.FAILED)
        client.wait(again, DEADLINE)
        assert main(["farm", "retry", *where, "p", "--failed", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert list(told["tasks"]) == [again]
        assert main(["farm", "retry", *where, "p", "--failed"]) == 0
        assert "0 tasks of the plan" in capsys.readouterr().out
