"""What clients and workers get from a coordinator, over real HTTP."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm import http
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server import tasks
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


def refusal(call, *arguments, **fields):
    with pytest.raises(FarmRefused) as caught:
        call(*arguments, **fields)
    return caught.value


class TestATasksLife:
    def test_completed(self, client, worker):
        task = client.submit(["pytest", "-x"], name="tests", environment={"A": "b"})
        order = worker.next()
        assert (order.task, order.number, order.specification.command) == (task, 1, ("pytest", "-x"))
        assert order.specification.environment == {"A": "b"}
        assert client.task(task).status == "assigned"
        worker.start(order)
        assert client.next_attempt(task, 0).revision == order.revision
        worker.end(order, metrics={"loss": 0.5}, counts={"passed": 3})
        info = client.wait(task, DEADLINE)
        assert (info.status, info.exit_code, info.raw["worker_id"]) == ("completed", 0, "w")
        assert info.raw["results"]["metrics"]["loss"] == 0.5
        assert info.raw["results"]["counts"] == {"passed": 3}
        acknowledged = worker.acknowledgements.get(timeout=DEADLINE)
        assert (acknowledged.revision, acknowledged.recorded) == (order.revision, True)

    def test_a_metric_that_is_not_a_number(self, client, worker):
        task = client.submit(["x"])
        worker.end(worker.next(), metrics={"loss": float("nan"), "rate": float("inf"), "steps": 3.0})
        metrics = client.wait(task, DEADLINE).raw["results"]["metrics"]
        assert (metrics["loss"], metrics["rate"], metrics["steps"]) == (None, None, 3.0)

    def test_tried_again(self, client, worker):
        task = client.submit(["x"], retries=1)
        first = worker.next()
        worker.end(first, OutcomeKind.FAILED, reason="exit code 1")
        second = worker.next()
        assert (second.task, second.number) == (task, 2)
        assert second.revision > first.revision
        worker.end(second, OutcomeKind.FAILED, reason="exit code 7", exit_code=7)
        info = client.wait(task, DEADLINE)
        assert (info.status, info.exit_code, info.reason) == ("failed", 7, "exit code 7")

    def test_only_tried_again_after_what_counts(self, client, worker):
        task = client.submit(["x"], retries={"times": 5, "on": ["failed"], "exit_codes": [75, 137]})
        for fields in ({"exit_code": 75}, {"exit_code": None, "signal": 9}):
            worker.end(worker.next(), OutcomeKind.FAILED, **fields)
        worker.end(worker.next(), OutcomeKind.FAILED, exit_code=1, reason="exit code 1")
        info = client.wait(task, DEADLINE)
        assert (info.status, info.exit_code, info.raw["metadata"]["attempt"]) == ("failed", 1, 3)
        task = client.submit(["x"], retries={"times": 5, "exit_codes": [75]}, timeout=1.0)
        worker.end(worker.next(), OutcomeKind.TIMEOUT)  # both kinds count where none is named
        worker.end(worker.next())
        assert client.wait(task, DEADLINE).status == "completed"
        told = refusal(client.submit, ["x"], retries={"times": 1, "on": ["timeout"], "exit_codes": [75]})
        assert "name 'failed' under 'on', too" in str(told)

    def test_a_result_of_another_attempt_does_not_count(self, client, worker):
        """And the worker is told that it may forget it."""
        task = client.submit(["x"], retries=1)
        first = worker.next()
        worker.end(first, OutcomeKind.FAILED)
        second = worker.next()
        worker.acknowledgements.get(timeout=DEADLINE)
        worker.end(first)
        assert not worker.acknowledgements.get(timeout=DEADLINE).recorded
        assert not client.task(task).done
        worker.end(second)
        assert client.wait(task, DEADLINE).status == "completed"

    def test_cancelled_while_it_runs(self, client, worker):
        task = client.submit(["x"])
        order = worker.next()
        assert client.cancel(task, "not wanted") == "cancelled"
        told = worker.cancelled.get(timeout=DEADLINE)
        assert (told.task, told.revision) == (task, order.revision)
        info = client.task(task)
        assert (info.status, info.reason) == ("cancelled", "not wanted")
        assert client.cancel(task) == "finished"
        worker.end(order)  # too late
        assert not worker.acknowledgements.get(timeout=DEADLINE).recorded
        assert client.task(task).status == "cancelled"

    def test_one_after_the_other(self, client, worker):
        now = time.time()
        first, second, third = (new_task_id(now) for _ in range(3))
        client.submit_all(
            [
                {"task_id": third, "command": ["c"], "dependencies": [second]},
                {"task_id": second, "command": ["b"], "dependencies": [first]},
                {"task_id": first, "command": ["a"]},
            ]
        )
        assert client.task(second).status == "waiting"
        poll_until(lambda: first in (client.task(second).reason or ""), DEADLINE, "the leader to say why")
        for task in (first, second, third):
            order = worker.next()
            assert order.task == task
            worker.end(order)
        assert client.wait(third, DEADLINE).status == "completed"

    def test_skipped(self, client, worker):
        """What comes after a task that failed is skipped, and so on; a task that cleans up runs."""
        first = client.submit(["a"])
        second = client.submit(["b"], after=[first])
        third = client.submit(["c"], after=[second])
        clean_up = client.submit(["d"], after_any=[first])
        worker.end(worker.next(), OutcomeKind.FAILED)
        order = worker.next()
        assert order.task == clean_up
        worker.end(order)
        for task in (second, third):
            info = client.wait(task, DEADLINE)
            assert (info.status, "comes after" in info.reason) == ("skipped", True)

    def test_after_a_task_that_is_done_already(self, client, worker):
        first = client.submit(["a"])
        worker.end(worker.next())
        client.wait(first, DEADLINE)
        second = client.submit(["b"], after=[first])
        assert worker.next().task == second

    def test_why_it_does_not_run(self, client, worker):
        told = client.submit_all(
            [{"task_id": new_task_id(time.time()), "command": ["x"], "needs": [{"amounts": {"gpu": 1}}]}]
        )
        assert "none of the 1 workers can do it; the nearest lacks 1 x gpu" in told[0]["warning"]
        self.until_told(client, told[0]["task_id"], "waits for 1 x gpu; no worker has gpu")
        for _ in range(2):
            client.submit(["x"])
            worker.next()
        self.until_told(client, client.submit(["x"]), "waits for 1 x cpu; 1 worker has that")

    def until_told(self, client, task, why):
        poll_until(lambda: why in (client.task(task).reason or ""), DEADLINE, f"the leader to say: {why}")


class TestSubmitting:
    def test_twice_is_once(self, client):
        request = {"task_id": new_task_id(time.time()), "command": ["x"]}
        assert [client.submit_all([request])[0]["submission"] for _ in range(2)] == ["new", "known"]

    def test_twice_is_once_when_it_is_done(self, client, worker):
        request = {"task_id": new_task_id(time.time()), "command": ["x"]}
        client.submit_all([request])
        worker.end(worker.next())
        client.wait(request["task_id"], DEADLINE)
        assert client.submit_all([request])[0]["submission"] == "done"

    def test_another_under_its_id(self, client):
        task = new_task_id(time.time())
        client.submit(["x"], task_id=task)
        assert refusal(client.submit, ["y"], task_id=task).status == 409

    def test_the_same_key(self, client):
        first = client.submit(["x"], key="nightly")
        assert client.submit(["x"], key="nightly") == first

    @pytest.mark.parametrize(
        ("request_", "told"),
        [
            ({"commmand": ["x"]}, "unknown field 'commmand'; did you mean 'command'?"),
            ({"command": []}, "command"),
            ({"command": ["a\0b"]}, "NUL"),
            ({"command": ["x"], "task_id": "7"}, "no UUID of version 7"),
            ({"command": ["x"], "timeout": -1}, "timeout"),
            ({"command": ["x"], "needs": [{"amounts": {"cpu": -1}}]}, "must be a number from 0 up"),
            ({"command": ["x"], "folder": "../up"}, "must lie in the task's own workspace"),
            ({"command": ["x"], "dependencies": ["ghost"]}, "comes after 'ghost', which this farm does not know"),
            ({"command": ["x"], "source": "0" * 64}, "is not here: send it first"),
            ({"command": ["x"], "task_id": new_task_id(1_000_000_000.0)}, "remembers ids for"),
        ],
        ids=lambda part: part[:20] if isinstance(part, str) else "",
    )
    def test_refused(self, client, request_, told):
        error = refusal(client.submit_all, [{"task_id": new_task_id(time.time()), **request_}])
        assert error.status == 422
        assert told in str(error)
        assert list(client.tasks()) == []

    def test_a_circle(self, client):
        one, two = new_task_id(time.time()), new_task_id(time.time())
        error = refusal(
            client.submit_all,
            [
                {"task_id": one, "command": ["x"], "dependencies": [two]},
                {"task_id": two, "command": ["x"], "dependencies": [one]},
            ],
        )
        assert f"{one} after {two} after {one}" in str(error) or f"{two} after {one} after {two}" in str(error)

    def test_etcd_is_away(self, coordinator, memory, monkeypatch):
        """The answer is "not now", at once enough for who waits; asked again it is accepted once."""
        monkeypatch.setattr(tasks, "WRITE", 0.2)
        with coordinator.client() as client:
            client.connection.patience = 0.0
            request = {"task_id": new_task_id(time.time()), "command": ["x"]}
            memory.reachable = False
            error = refusal(client.submit_all, [request])
            assert (error.status, "etcd does not answer" in str(error)) == (503, True)
            memory.reachable = True
            monkeypatch.undo()
            assert client.submit_all([request])[0]["submission"] == "new"
            assert client.submit_all([request])[0]["submission"] == "known"

    def test_no_json(self, coordinator):
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(coordinator, "/api/tasks", data=b"{", Authorization=f"Bearer {read_token(coordinator.token_file)}")
        assert caught.value.code == 422
        caught.value.close()

    def test_unknown_task(self, client):
        assert refusal(client.task, new_task_id(0.0)).status == 404
        assert refusal(client.cancel, new_task_id(0.0)).status == 404

    def test_pages(self, client):
        for project in ("p", "q"):
            client.set_project(project)
        ids = [client.submit(["x"], project="p" if number % 2 else "q") for number in range(5)]
        page = client.connection.ask("GET", "/api/tasks", limit=2)
        assert [task["task_id"] for task in page["tasks"]] == sorted(ids, reverse=True)[:2]
        assert {task.task_id for task in client.tasks()} == set(ids)
        assert {task.task_id for task in client.tasks(project="p")} == set(ids[1::2])
        assert list(client.tasks(status="completed")) == []


class TestOutput:
    def test_followed_to_its_end(self, client, worker):
        task = client.submit(["x"])
        order = worker.next()
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(client.logs(task, follow=True)))
        reader.start()
        assert worker.write(order, 0, b"one\n") == 4
        assert worker.write(order, 4, b"\xff\x00two\n") == 10
        worker.end(order, log_bytes=10)
        reader.join(DEADLINE)
        assert b"".join(got) == b"one\n\xff\x00two\n"
        assert b"".join(client.logs(task)) == b"one\n\xff\x00two\n"
        assert b"".join(client.logs(task, offset=4)) == b"\xff\x00two\n"

    def test_a_silent_task_is_followed_for_as_long_as_it_takes(self, client, worker, monkeypatch):
        monkeypatch.setattr(http, "SILENCE", 0.1)
        task = client.submit(["x"])
        order = worker.next()
        opened = []
        stream = client.connection.stream

        def count(*arguments, **fields):
            opened.append(1)
            return stream(*arguments, **fields)

        monkeypatch.setattr(client.connection, "stream", count)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(client.logs(task, follow=True)))
        reader.start()
        worker.write(order, 0, b"one")
        poll_until(lambda: len(opened) > 2, DEADLINE, "the stream to be opened again")
        worker.write(order, 3, b"two")
        worker.end(order, log_bytes=6)
        reader.join(DEADLINE)
        assert b"".join(got) == b"onetwo"

    def test_chunks_twice_and_behind_a_gap(self, client, worker):
        task = client.submit(["x"])
        order = worker.next()
        worker.write(order, 0, b"abc")
        assert worker.write(order, 0, b"abc") == 3
        assert worker.write(order, 1, b"bcde") == 5
        error = refusal(worker.write, order, 9, b"x")
        assert (error.status, error.body["wanted"]) == (409, 5)
        assert b"".join(client.logs(task)) == b"abcde"

    def test_nothing_written(self, client, worker):
        task = client.submit(["x"])
        worker.end(worker.next())
        client.wait(task, DEADLINE)
        assert b"".join(client.logs(task, follow=True)) == b""


class TestWorkers:
    def test_cordoned(self, client, worker):
        assert client.change_worker("w", "cordon")["metadata"]["cordoned"]
        task = client.submit(["x"])
        assert client.task(task).status == "pending"
        assert worker.orders.empty()
        client.change_worker("w", "uncordon")
        assert worker.next().task == task

    def test_drained(self, client, worker):
        task = client.submit(["x"])
        order = worker.next()
        client.change_worker("w", "drain")
        assert worker.draining.wait(DEADLINE)
        client.submit(["y"])
        worker.end(order)
        assert client.wait(task, DEADLINE).status == "completed"
        assert worker.orders.empty()
        (shown,) = client.workers()
        assert shown["status"] == "draining"

    def test_drained_between_two_connections(self, client, worker):
        """It hears of it when it comes back; the wish is not forgotten by its coming."""
        worker.hold_off()
        poll_until(lambda: client.workers()[0]["status"] == "offline", DEADLINE, "the connection to end")
        client.change_worker("w", "drain")
        worker.come_back()
        assert worker.draining.wait(DEADLINE)
        assert client.workers()[0]["status"] == "draining"

    def test_unknown(self, client, worker):
        assert "it has w" in str(refusal(client.change_worker, "nobody", "drain"))

    def test_two_with_one_name(self, coordinator, worker):
        """In another folder."""
        other = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), session="another")
        try:
            assert "another worker named 'w' is connected" in str(other.error())
            assert worker.link.connected.is_set()
        finally:
            other.close()


def ask(coordinator, path, data=None, **headers):
    request = urllib.request.Request(coordinator.url + path, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        return answer.status, json.load(answer)


class TestAccess:
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "TOKEN", "Host": "evil.example"}, 403),
            ({"Authorization": "TOKEN", "Origin": "https://evil.example"}, 403),
            ({"Authorization": "TOKEN", "Origin": "http://127.0.0.1:1"}, 200),
        ],
    )
    def test_who_may_ask(self, coordinator, headers, status):
        token = f"Bearer {read_token(coordinator.token_file)}"
        headers = {name: token if value == "TOKEN" else value for name, value in headers.items()}
        if status == 200:
            assert ask(coordinator, "/api/status", **headers)[0] == 200
            return
        with pytest.raises(urllib.error.HTTPError) as caught:
            ask(coordinator, "/api/status", **headers)
        with caught.value as error:
            assert error.code == status
            assert json.load(error)["error"]

    def test_every_change_is_in_the_audit_file(self, coordinator, client):
        task = client.submit(["x"])
        client.cancel(task)
        lines = [json.loads(line) for line in coordinator.audit.read_text().splitlines()]
        assert [(line["method"], line["path"], line["status"]) for line in lines] == [
            ("POST", "/api/tasks", 200),
            ("POST", f"/api/tasks/{task}/cancel", 200),
        ]

    def test_a_worker_with_another_token(self, coordinator):
        worker = PlayedWorker((coordinator.url,), "wrong")
        try:
            assert "this is neither the farm's own token nor one that it has signed" in str(worker.error())
        finally:
            worker.close()

    def test_a_token_that_others_can_read(self, coordinator, tmp_path):
        file = tmp_path / "open"
        file.write_text("x")
        file.chmod(0o644)
        with pytest.raises(SettingsError, match=f"run `chmod 600 {file}`"):
            Client(coordinator.url, file)


def test_who_leads(client, coordinator):
    def asked():
        return client.connection.ask("GET", "/api/cluster/status")

    poll_until(lambda: asked()["leader_id"], DEADLINE, "somebody to lead")
    status = asked()
    assert status["leader_id"] == "c0"
    assert status["cluster_health"] != "critical"  # a busy machine is a warning
    assert [(node["node_id"], node["state"]) for node in status["nodes"]] == [("c0", "leader")]
    leader = client.connection.ask("GET", "/api/cluster/leader")
    assert leader["current_term"] == status["current_term"] > 0


def test_a_result_between_hello_and_welcome(coordinator, client, worker):
    """It is in no hello, and there is no connection yet to say it over."""
    task = client.submit(["x"])
    order = worker.next()
    before = worker.hello

    def hello():
        said = before()
        worker.end(order)  # behind this hello, before its answer
        return said

    worker.hello = hello
    worker.reconnect()
    assert client.wait(task, DEADLINE).status == "completed"
