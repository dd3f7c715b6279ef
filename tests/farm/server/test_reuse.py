"""Results that are known for the same inputs: a task that asks for one ends by it, and no worker is touched."""

from __future__ import annotations

import hashlib
import queue
import time
from dataclasses import dataclass

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import array_id, new_task_id
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import ResultsBusy
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("farm")


@pytest.fixture(scope="module")
def coordinator(folder):
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, folder)
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()
    store.close()


@pytest.fixture
def client(coordinator):
    with coordinator.client() as client:
        yield client


@pytest.fixture(scope="module")
def worker(coordinator):
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file))
    worker.wait_until_welcome()
    worker.connection.ask("GET", "/api/status")  # opens the connection that it keeps
    yield worker
    worker.close()


@dataclass
class Work:
    """One test's own work, which no other test has done."""

    client: Client
    worker: PlayedWorker
    name: str

    def submit(self, command=("x",), **fields):
        return self.client.submit(list(command), **{"environment": {"A": self.name}, "reuse": True, **fields})

    def runs(self, command=("x",), kind=OutcomeKind.COMPLETED, output=b"", end=None, **fields):
        """The worker runs it; returns the task when it has ended."""
        task = self.submit(command, **fields)
        order = self.worker.next()
        assert order.task == task
        if output:
            self.worker.write(order, 0, output)
        self.worker.end(order, kind, log_bytes=len(output), tail=output.decode(), **(end or {}))
        return self.client.wait(task, DEADLINE)

    def is_known(self, source, command=("x",), **fields):
        """It ends by the result of another task; returns it."""
        info = self.client.wait(self.submit(command, **fields), DEADLINE)
        assert (info.status, info.reused_from) == ("completed", source)
        with pytest.raises(queue.Empty):
            self.worker.orders.get_nowait()
        return info

    def leaves(self, task, revision, data):
        """An attempt leaves a file; returns where it lies."""
        digest = hashlib.sha256(data).hexdigest()
        path = f"/api/tasks/{task}/artifacts"
        self.worker.connection.send("PUT", path, data, revision=revision, name="junit.xml", digest=digest)
        return self.client.artifacts(task, revision=revision)["artifacts"][0]["url"]


@pytest.fixture
def work(client, worker, request):
    return Work(client, worker, request.node.name)


def test_it_ends_by_the_result_that_is_known(work, client):
    """With numbers, output and files of that one, by no worker and in no time of its own; who asks for none runs."""
    first = work.runs(output=b"forty-two\n", end={"metrics": {"loss": 0.5}, "counts": {"tests": 3}})
    work.leaves(first.task_id, first.revision, b"<testsuite/>")
    second = work.is_known(first.task_id, name="another name", priority=3)
    told, before = second.raw, first.raw
    assert (told["worker_id"], told["start_time"], told["metadata"]["attempt"]) == (None, None, 0)
    assert told["name"] == "another name"
    assert told["results"] == before["results"]
    assert second.reason == f"the result of {first.task_id}, which had the same inputs"
    assert b"".join(client.logs(second.task_id)) == b"forty-two\n"
    assert b"".join(client.logs(second.task_id, follow=True, offset=6)) == b"two\n"
    assert [one["name"] for one in client.artifacts(second.task_id)["artifacts"]] == ["junit.xml"]
    assert client.read_artifact(second.task_id, "junit.xml") == b"<testsuite/>"
    # It is known by the one that ran, however long the chain.
    work.is_known(first.task_id)
    (row,) = client.results(task_id=second.task_id)
    assert row["metadata"]["reused_from"] == first.task_id
    work.runs(reuse=False)


def test_other_work_runs(work):
    work.runs()
    work.runs(environment={"A": "2"})
    work.runs(("x", "y"))


@pytest.mark.parametrize(
    "how",
    [
        {"kind": OutcomeKind.FAILED},
        {"kind": OutcomeKind.TIMEOUT},
        {"end": {"missing": ("junit.xml",)}},  # a file that could not be stored
        {"reuse": False},  # nobody has said that it may be used again
    ],
)
def test_what_is_not_used_again(work, how):
    work.runs(**how)
    work.runs()


def test_what_was_cancelled_is_not_used_again(work, client, worker):
    task = work.submit()
    worker.next()
    client.cancel(task)
    work.runs()


def test_only_so_old(work):
    old = work.runs(end={"started": 1.0, "ended": time.time() - 100})
    work.is_known(old.task_id, reuse=1000)
    new = work.runs(reuse=10, end={"started": 1.0, "ended": time.time()})
    work.is_known(new.task_id, reuse=1000)


def test_a_retry_runs(work, client, worker):
    """Somebody wants to see it run; what it gives is the newest that is known."""
    first = work.runs()
    again = client.retry(first.task_id)
    worker.end(worker.next())
    assert client.wait(again, DEADLINE).reused_from == ""
    work.is_known(again)


def test_what_comes_after_others_waits_for_them(work, client, worker):
    first = work.runs()
    before = client.submit(["before"])
    after = work.submit(after=[before])
    worker.end(worker.next(), OutcomeKind.FAILED)
    assert client.wait(after, DEADLINE).status == "skipped"
    before = client.submit(["before"])
    after = work.submit(after=[before])
    last = client.submit(["last"], after=[after])
    worker.end(worker.next())
    assert client.wait(after, DEADLINE).reused_from == first.task_id
    order = worker.next()
    assert order.task == last
    worker.end(order)


def test_output_that_is_gone(work, folder):
    """A result is known as long as all that it has left."""
    first = work.runs(output=b"text")
    work.is_known(first.task_id)
    (log,) = (folder / "files" / "logs" / first.task_id).iterdir()
    log.unlink()
    work.runs(output=b"text")


def test_artifacts_that_are_gone(work, worker, client, folder):
    for again in (False, True):
        task = work.submit()
        order = worker.next()
        assert order.task == task
        worker.end(order, artifacts={"junit.xml": work.leaves(task, order.revision, b"data")})
        client.wait(task, DEADLINE)
        if not again:
            work.is_known(task)
            for file in (folder / "files" / "artifacts" / task).rglob("*.xml"):
                file.unlink()


def test_the_database_is_away(work, monkeypatch):
    """Then nothing is known, and the task runs."""

    def busy(*_):
        raise ResultsBusy("away")

    work.runs()
    monkeypatch.setattr(History, "reusable", busy)
    work.runs()


def test_instances_of_an_array(work, client, worker):
    """Each by itself: the one that failed runs, the others' results are known."""
    for count in (3, 1):
        array = work.submit(array=3)
        ran = set()
        for _ in range(count):
            order = worker.next()
            ran.add(order.specification.index)
            failed = order.specification.index == 1 and count == 3
            worker.end(order, OutcomeKind.FAILED if failed else OutcomeKind.COMPLETED)
        info = client.wait(array, DEADLINE)
        assert ran == ({0, 1, 2} if count == 3 else {1})
    assert (info.status, info.raw["results"]["counts"]) == ("completed", {"completed": 3})
    assert client.task(f"{array}[0]").reused_from


def test_over_coordinators(tmp_path):
    """The record has it: another coordinator, which saw nothing of the first task, leads and knows its result."""
    store = MemoryStore()
    first = CoordinatorInThread(store, tmp_path)
    player = PlayedWorker((first.url,), read_token(first.token_file))
    with first.client() as client:
        told = Work(client, player, "over").runs(output=b"text")
    player.close()
    first.stop()
    second = CoordinatorInThread(store, tmp_path, name="c1")
    try:
        with second.client() as client:
            info = Work(client, player, "over").is_known(told.task_id)
            assert b"".join(client.logs(info.task_id)) == b"text"
    finally:
        second.stop()
        store.close()


def test_a_plan_by_the_command(client, worker, coordinator, tmp_path, monkeypatch, capfd):
    """The second run says whose results they are; `dtf farm run --reuse` shows that one's output, `logs` too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(
        "defaults: {reuse: 7d}\ntasks: {a: {run: a}, b: {run: b, after: a, reuse: false}}"
    )
    where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file), "--no-source"]
    assert main(["farm", "submit", *where, "plan.yaml"]) == 0
    plan = capfd.readouterr().out.strip()
    orders = []
    for _ in range(2):
        orders.append(worker.next())
        worker.write(orders[-1], 0, b"said\n")
        worker.end(orders[-1], started=time.time(), ended=time.time(), log_bytes=5)
    for task in client.tasks(plan=plan):
        client.wait(task.task_id, DEADLINE)
    assert main(["farm", "submit", *where, "plan.yaml"]) == 0
    capfd.readouterr()
    assert worker.next().specification.command == ("sh", "-ec", "b")
    assert main(["farm", "run", *where, "--reuse", "--", "sh", "-ec", "a"]) == 0
    told = capfd.readouterr()
    assert told.out == "said\n"
    assert f"the result of {orders[0].task}, which had the same inputs" in told.err


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"stdin": True}, "that reads its standard input, which has no digest"),
        ({"array": 2, "training": 1}, "that is a training"),
    ],
)
def test_tasks_whose_inputs_are_not_known(client, fields, why):
    request = {"task_id": array_id(new_task_id(time.time())), "command": ["x"], "reuse": True, **fields}
    with pytest.raises(FarmRefused, match=why):
        client.submit_all([request])
