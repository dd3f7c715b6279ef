"""Calls through a coordinator: what workers are told, how what was returned comes back, and futures that wait for it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm import client as client_module
from dtf_lightning.farm.calls.returned import write_told
from dtf_lightning.farm.calls.spelling import ARGUMENTS, FUNCTION
from dtf_lightning.farm.functions.values import TaskFailed
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One coordinator for all tests of this file, which takes pickles."""
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path_factory.mktemp("farm"), settings={"security.allow_pickle": True})
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()
    store.close()


@pytest.fixture
def client(shared):
    """What is not done at the end of the test is cancelled."""
    with shared.client() as client:
        yield client
        for status in ("waiting", "pending", "assigned", "running"):
            for task in list(client.tasks(status=status)):
                client.cancel(task.task_id)


@pytest.fixture
def worker(shared, client):
    worker = PlayedWorker((shared.url,), read_token(shared.token_file))
    worker.wait_until_welcome()
    yield worker
    worker.close()


def end(worker, order, value):
    worker.end(order, returned=write_told({"value": value}))


def fail(worker, order, reason="ValueError: x"):
    worker.end(order, OutcomeKind.FAILED, reason=reason)


def test_a_call_and_its_value(client, worker):
    """It is a command, for whoever lists tasks; its value is in the task, in the results and in the list of results."""
    plan = client.submit_plan({"tasks": {"mean": {"call": "statistics:mean", "args": [[1, 2]]}}})
    order = worker.next()
    assert (order.specification.call, order.specification.command[4]) == ("import", "statistics:mean")
    told = {"value": {"of": [1.5, None]}}
    worker.end(order, returned=write_told(told))
    task = client.wait(order.task, DEADLINE)
    assert task.raw["results"]["returned"] == told
    (row,) = client.results(plan=plan)
    assert row["raw_data"]["returned"] == told
    found = client.query(f"SELECT returned->'$.value.of[0]' FROM farm.results WHERE plan = '{plan}'")
    assert found["rows"] == [["1.5"]]


def test_a_command_returns_nothing(client, worker):
    task = client.submit(["x"])
    worker.end(worker.next())
    assert client.wait(task, DEADLINE).raw["results"]["returned"] is None


def test_a_call_by_name_from_python(client, worker):
    """Its future has the value; it needs no leave."""
    future = client.options(name="the mean", needs={"cpu": 2}).call("statistics:mean", [1, 2, 6])
    order = worker.next()
    assert (order.specification.name, order.specification.needs[0].amounts) == ("the mean", {"cpu": 2})
    assert not future.done()
    end(worker, order, 3)
    assert (future.result(DEADLINE), future.exception(), future.done(), future.cancel()) == (3, None, True, False)
    with pytest.raises(SettingsError, match="names no function"):
        client.call("mean")


def test_what_a_function_cannot_be(client):
    with pytest.raises(SettingsError, match="`array` is of commands: of a function `map` makes many calls"):
        client.options(array=3)
    assert client.map(len, []) == []
    assert client.results([]) == []


def test_pickles_are_refused_by_default(coordinator):
    """By name, and before anything is accepted: the setting says how to have it otherwise."""
    told = "task len: this farm takes no functions that travel by cloudpickle; set `allow_pickle: true`"
    with coordinator.client() as client:
        with pytest.raises(FarmRefused, match=told) as no:
            client.submit(len, [1])
        assert no.value.status == 422
        assert list(client.tasks()) == []


class TestFutures:
    def test_many_calls_are_few_requests(self, client, monkeypatch):
        """Two files and one submission, up to 1,000 calls; nothing of an argument is in etcd. They are waited for together."""
        assert client_module.BATCH == 1000
        monkeypatch.setattr(client_module, "ASKED_AT_ONCE", 50)
        asked = []
        try_it = client.connection._try
        monkeypatch.setattr(client.connection, "_try", lambda *told: asked.append(told[:2]) or try_it(*told))
        plan = new_task_id(time.time())
        futures = client.options(plan=plan).map(len, [["x" * 100]] * 120)
        assert [method for method, _ in asked] == ["PUT", "PUT", "POST"]
        assert len({future.task_id for future in futures}) == 120
        client.submit(len, ["y"])
        assert [method for method, _ in asked] == ["PUT", "PUT", "POST", "PUT", "POST"]
        task = client.task(futures[0].task_id)
        assert "xxx" not in str(task.raw)
        assert task.raw["name"] == "len"
        assert client.cancel_plan(plan) == 120
        assert all(future.cancelled() for future in client.as_completed(futures, DEADLINE))

    def test_inputs(self, client, worker):
        client.submit(len, [1])
        spec = worker.next().specification
        assert (set(spec.inputs), spec.is_pickled) == ({FUNCTION, ARGUMENTS}, True)

    def test_as_they_complete(self, client, worker):
        first, second = futures = client.map(len, [[1], [2]])
        orders = {order.task: order for order in (worker.next(), worker.next())}
        seen = client.as_completed(futures)
        end(worker, orders[second.task_id], 2)
        assert next(seen) is second
        with pytest.raises(TimeoutError):
            list(client.as_completed(futures, timeout=0.05))
        assert client.wait(futures, 0.05) == ({second}, {first})
        assert client.wait(futures, return_when=FIRST_COMPLETED).done == {second}
        end(worker, orders[first.task_id], 1)
        assert next(seen) is first
        assert list(seen) == []
        assert client.results(futures) == [1, 2]
        assert {info.task_id for info in client.as_completed([first.task_id, second.task_id])} == set(orders)

    def test_one_fails(self, client, worker):
        futures = client.map(len, [[1], [2]])
        order, _ = worker.next(), worker.next()
        fail(worker, order)
        told = client.wait(futures, return_when=FIRST_EXCEPTION)
        assert [future.task_id for future in told.done] == [order.task]
        (failed,) = told.done
        with pytest.raises(TaskFailed, match="ended as failed: ValueError: x"):
            failed.result()
        assert isinstance(failed.exception(), TaskFailed)

    def test_cancelled(self, client, worker):
        future = client.submit(len, [1])
        worker.next()
        assert future.cancel()
        assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
        for ask in (future.result, future.exception):
            with pytest.raises(CancelledError):
                ask()

    def test_what_comes_after(self, client, worker):
        """A future may be named as what a call comes after."""
        first = client.submit(len, [1])
        second = client.options(after=[first]).submit(len, [2])
        fail(worker, worker.next())
        with pytest.raises(TaskFailed, match="ended as skipped"):
            second.result(DEADLINE)


class TestEnds:
    """`GET /api/task_ends`."""

    def test_one_of_many(self, client, worker):
        tasks = client.map([["x"], ["y"]])
        told = []
        question = {"tasks": ",".join(tasks), "wait": DEADLINE}
        thread = threading.Thread(
            target=lambda: told.append(client.connection.ask("GET", "/api/task_ends", **question))
        )
        thread.start()
        order = worker.next()
        worker.end(order)
        thread.join(DEADLINE)
        assert [task["task_id"] for task in told[0]["ended"]] == [order.task]
        assert client.connection.ask("GET", "/api/task_ends", tasks=tasks[0], wait=0.01)["ended"] in (
            [],
            told[0]["ended"],
        )

    @pytest.mark.parametrize("tasks", ["", ",".join(["x"] * 501)], ids=["none", "many"])
    def test_what_is_refused(self, client, tasks):
        with pytest.raises(FarmRefused, match="expected 1 to 500 ids with commas between them") as refused:
            client.connection.ask("GET", "/api/task_ends", tasks=tasks)
        assert refused.value.status == 422

    def test_one_that_is_not_known(self, client):
        """It is told beside the others, and ends no other's wait; who waits for it alone is refused."""
        unknown = new_task_id(time.time())
        assert client.ask_for_ends([unknown]) == {"ended": [], "unknown": [unknown]}
        with pytest.raises(FarmRefused, match="this farm knows no task"):
            list(client.as_completed([unknown]))
