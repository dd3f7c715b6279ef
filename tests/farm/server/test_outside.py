"""Workers that were written by others: over REST, with the fences of those of this package."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import WorkerRecord
from dtf_lightning.farm.server.outside import workers as outside_module
from dtf_lightning.farm.server.pool import Pool
from support.farm.server import DEADLINE, CoordinatorInThread
from support.source_tree import ROOT

pytestmark = pytest.mark.process


class RestWorker:
    """What a worker's program would ask, one request at a time."""

    def __init__(self, client: Client, name: str = "r", **fields) -> None:
        self.name = name
        self._ask = client.connection.ask
        self.registered = self._ask("POST", "/api/register", {"worker_id": name, **fields})
        self.session = self.registered["session"]

    def tasks(self, known: str = "", wait: float | None = None) -> list[dict]:
        """Without `wait`: as soon as there is one."""

        def ask(wait: float) -> list[dict]:
            path = f"/api/workers/{self.name}/tasks"
            return self._ask("GET", path, session=self.session, known=known, wait=wait)["tasks"]

        return ask(wait) if wait is not None else poll_until(lambda: ask(5.0), DEADLINE, "something to do")

    def end(self, task: dict, how: str = "complete", **fields) -> dict:
        body = {"worker_id": self.name, "revision": task["revision"], **fields}
        return self._ask("POST", f"/api/tasks/{task['task_id']}/{how}", body)

    def health(self, **fields) -> dict:
        return self._ask("POST", "/api/health", {"worker_id": self.name, "session": self.session, **fields})


@pytest.fixture
def rest(client):
    return RestWorker(client, devices={"cpu": 2}, labels=["odd"], hardware_id="a phone")


def refused(call, *arguments, **fields) -> FarmRefused:
    with pytest.raises(FarmRefused) as caught:
        call(*arguments, **fields)
    return caught.value


class TestALife:
    def test_completed(self, client, rest):
        client.set_project("p")
        task = client.submit(["pytest"], environment={"A": "b"}, labels=["odd"], timeout=9, project="p")
        (order,) = rest.tasks()
        assert (order["task_id"], order["command"], order["environment"]) == (task, ["pytest"], {"A": "b"})
        assert (order["needs"], order["timeout"], order["project"], order["attempt"]) == ({}, 9, "p", 1)
        rest.health(running={task: order["revision"]})
        assert client.task(task).status == "running"
        assert rest.end(order, metrics={"loss": 0.5}, counts={"passed": 3}, tail="ok")["recorded"]
        info = client.task(task)
        assert (info.status, info.exit_code, info.raw["worker_id"]) == ("completed", 0, "r")
        assert info.raw["results"]["metrics"]["loss"] == 0.5
        assert info.raw["results"]["counts"] == {"passed": 3}
        assert rest.tasks(wait=0) == []

    def test_failed_and_tried_again(self, client, rest):
        task = client.submit(["x"], retries=1)
        (first,) = rest.tasks()
        rest.end(first, "fail", exit_code=7, error="exit code 7")
        (second,) = rest.tasks()
        assert (second["attempt"], second["revision"] > first["revision"]) == (2, True)
        rest.end(second, "fail", exit_code=8, error="exit code 8")
        info = client.task(task)
        assert (info.status, info.exit_code, info.reason) == ("failed", 8, "exit code 8")

    def test_answered_again(self, client, rest):
        """The answer to the first was lost."""
        client.submit(["x"])
        (order,) = rest.tasks()
        assert rest.end(order) == rest.end(order)

    def test_an_attempt_that_does_not_count_any_more(self, client, rest):
        """It is not recorded, whoever says so, and the worker is told to end it."""
        task = client.submit(["x"])
        (order,) = rest.tasks()
        for wrong in ({"revision": order["revision"] + 1}, {"worker_id": "another"}):
            told = refused(rest.end, order | wrong, **{k: v for k, v in wrong.items() if k == "worker_id"})
            assert (told.status, told.body["recorded"]) == (409, False)
        client.cancel(task)
        assert [one["task_id"] for one in rest.health(running={task: order["revision"]})["cancel"]] == [task]
        assert refused(rest.end, order).status == 409
        assert client.task(task).status == "cancelled"

    def test_waits_until_there_is_something_else(self, client, rest):
        client.submit(["x"])
        (order,) = rest.tasks()
        later = threading.Thread(target=lambda: client.submit(["y"]))
        later.start()
        assert len(rest.tasks(known=str(order["revision"]), wait=10)) == 2
        later.join()

    def test_a_gang_goes_elsewhere(self, client, rest):
        other = RestWorker(client, "s")
        task = client.submit(["x"], gang=2)

        def over() -> bool:
            assert rest.tasks(wait=0) == other.tasks(wait=0) == []
            return client.task(task).done

        poll_until(over, DEADLINE, "the gang to be refused as often as makes it suspect")
        assert "cannot be a member of a gang" in client.task(task).reason


class TestPresence:
    def test_is_shown(self, client, rest):
        rest.health(performance_metrics={"cpu_percent": 99.0, "tasks_per_hour": 4.0})
        poll_until(lambda: client.workers()[0]["last_seen"], DEADLINE, "its health to be in the record")
        (shown,) = client.workers()
        assert (shown["worker_id"], shown["status"], shown["hardware_id"]) == ("r", "online", "a phone")
        assert shown["capabilities"] == {"devices": {"cpu": 2.0}, "labels": ["odd"]}
        assert (shown["performance_metrics"]["tasks_per_hour"], shown["health_status"]) == (4.0, "critical")
        assert shown["last_seen"] is not None
        told = client.connection.ask("GET", "/api/capabilities", worker_id="r")
        assert told["workers"][0]["capabilities"]["labels"] == ["odd"]
        assert refused(client.connection.ask, "GET", "/api/capabilities", worker_id="x").status == 404

    def test_a_silent_one_is_signed_off(self, monkeypatch, client):
        monkeypatch.setattr(outside_module, "SILENCE", 0.2)
        rest = RestWorker(client)
        poll_until(lambda: client.workers()[0]["status"] == "offline", DEADLINE, "the worker to be offline")
        told = refused(rest.tasks, wait=0)
        assert (told.status, "register again" in str(told)) == (409, True)
        monkeypatch.undo()
        assert RestWorker(client).tasks(wait=0) == []

    def test_two_of_one_name(self, client, rest):
        assert "another worker named 'r' is connected" in str(refused(RestWorker, client, "r"))
        own = RestWorker(client, "s", identity="folder 7")
        again = RestWorker(client, "s", identity="folder 7")
        assert "register again" in str(refused(own.tasks, wait=0))
        assert again.tasks(wait=0) == []

    def test_another_coordinator_takes_the_result(self, client, rest, memory, tmp_path):
        """The one that the worker was registered at may have gone."""
        task = client.submit(["x"])
        (order,) = rest.tasks()
        second = CoordinatorInThread(memory, tmp_path, name="c1")
        try:
            with second.client() as other:
                body = {"worker_id": "r", "revision": order["revision"]}
                assert other.connection.ask("POST", f"/api/tasks/{task}/complete", body)["recorded"]
                assert "register again" in str(
                    refused(other.connection.ask, "GET", "/api/workers/r/tasks", session=rest.session)
                )
                assert client.wait(task, DEADLINE).status == "completed"
        finally:
            second.stop()

    def test_draining(self, client, rest):
        assert not rest.health()["draining"]
        client.change_worker("r", "drain")
        assert rest.health()["draining"]
        client.submit(["x"])
        assert rest.tasks(wait=0.2) == []

    @pytest.mark.parametrize(
        ("path", "body", "told"),
        [
            ("register", {"worker_id": ""}, "worker_id"),
            ("register", {"worker_id": "x", "device": {}}, "did you mean 'devices'"),
            ("register", {"worker_id": "x", "devices": {"cpu": -1}}, "must be a number from 0 up"),
            ("health", {"worker_id": "x"}, "session"),
            ("tasks/t/complete", {"worker_id": "r", "revision": 0}, "revision"),
            ("tasks/t/complete", {"worker_id": "r", "revision": 1, "exit_code": 3}, "exit_code"),
            ("tasks/t/fail", {"worker_id": "r", "revision": 1, "kind": "x"}, "kind"),
        ],
    )
    def test_what_cannot_be_meant(self, client, path, body, told):
        refusal = refused(client.connection.ask, "POST", f"/api/{path}", body)
        assert (refusal.status, told in str(refusal)) == (422, True), refusal

    def test_more_than_an_envelope_holds(self, client, rest):
        """It is recorded all the same, without what there is no room for."""
        task = client.submit(["x"])
        (order,) = rest.tasks()
        assert rest.end(order, artifacts={f"{n}" * 100: "u" * 900 for n in range(10)})["recorded"]
        assert client.wait(task, DEADLINE).status == "completed"


def test_a_subtask_is_a_task(client, rest):
    """Of a job that is split over devices; it may be told by either name."""
    job = client.orchestrate({"command": ["x"], "inputs": 2, "pieces": 1}, retry_failed_subtasks=False)
    first, second = sorted(rest.tasks(), key=lambda order: order["environment"]["DTF_FARM_SUBTASK_BEGIN"])
    for order, how in ((first, "complete"), (second, "fail")):
        body = {"worker_id": "r", "revision": order["revision"]}
        assert client.connection.ask("POST", f"/api/subtasks/{order['task_id']}/{how}", body)["recorded"]
    told = client.orchestrated_task(job)
    assert [one["status"] for one in told["subtasks"]] == ["completed", "failed"]


def test_the_example(coordinator, client, tmp_path):
    """`examples/farm_worker.py` runs commands as they are: their output, their exit codes."""
    program = ROOT / "examples" / "farm_worker.py"
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, str(program), coordinator.url, str(coordinator.token_file), "example"]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        code = "import os; print(6 * 7, os.environ['WHERE']); raise SystemExit(int(os.environ['CODE']))"
        good, bad = (
            client.submit([sys.executable, "-c", code], environment={"WHERE": "here", "CODE": str(exit_code)})
            for exit_code in (0, 3)
        )
        infos = [client.wait(task, DEADLINE) for task in (good, bad)]
        assert [(info.status, info.exit_code) for info in infos] == [("completed", 0), ("failed", 3)]
        assert [b"".join(client.logs(task)) for task in (good, bad)] == [b"42 here\n"] * 2
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
        log.close()


def test_who_waits_is_told_when_the_coordinator_ends(memory, tmp_path, monkeypatch):
    """To register again, at once: not after the five seconds that requests under way get."""
    waits = threading.Event()
    wait_for = Pool.wait_for

    async def noted(pool, name, condition, timeout):
        if timeout == 10:
            waits.set()
        return await wait_for(pool, name, condition, timeout)

    monkeypatch.setattr(Pool, "wait_for", noted)
    coordinator = CoordinatorInThread(memory, tmp_path)
    told: list[FarmRefused] = []
    with coordinator.client() as client:
        worker = RestWorker(client)
        thread = threading.Thread(target=lambda: told.append(refused(worker.tasks, wait=10)))
        thread.start()
        waits.wait(DEADLINE)
        coordinator.stop()
        thread.join(DEADLINE)
    assert "register again" in str(told[0])


def test_one_that_an_earlier_coordinator_of_this_name_has_left(memory, tmp_path):
    """The coordinator was killed and started again within its lease, and the worker died meanwhile: it is lost all the same."""
    record = WorkerRecord(coordinator="c0", connection="of yesterday", session="s", devices={"cpu": 1.0})
    memory.put(FarmKeys("f").key(Kind.WORKER, "w"), encode(record))
    coordinator = CoordinatorInThread(memory, tmp_path, settings={"health_monitor.worker_grace": 0.2})
    try:
        with coordinator.client() as client:
            poll_until(lambda: client.workers() == [], DEADLINE, "the worker to be given up")
    finally:
        coordinator.stop()
