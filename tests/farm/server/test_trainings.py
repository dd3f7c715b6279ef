"""Trainings over HTTP, with played workers: they fill what is idle, give it back to what waits, and come again."""

from __future__ import annotations

from contextlib import closing

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.cli import tasks
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.scheduling import lending, trainings
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process
KEYS = FarmKeys("f")


@pytest.fixture
def start(client, worker, monkeypatch):
    """A training that has taken both cores of the farm; returns its id and its two orders."""
    monkeypatch.setattr(trainings, "AWAY", 0.2)
    monkeypatch.setattr(trainings, "PRICE", 0.0)

    def start():
        training = client.train("train.py", ["--epochs", "3"], endpoint="etcd:2379", workers=(1, 4))
        return training, [worker.next(), worker.next()]

    return start


def world(client, training):
    return client.task(training).raw["metadata"]["training"]


def test_fills_what_is_idle_gives_it_back_and_comes_again(client, worker, start, memory):
    training, (first, second) = start()
    assert first.specification.command[-3:] == ("train.py", "--epochs", "3")
    assert f"--rdzv-id={training}" in first.specification.command
    assert {first.specification.index, second.specification.index} == {0, 1}
    assert (world(client, training)["running"], world(client, training)["wanted"]) == (2, 4)

    test = client.submit(["test"])
    asked = worker.yields.get(timeout=DEADLINE)
    assert asked.task in (first.task, second.task)
    assert asked.reason == f"gave its device back for the task {test}"
    assert [one["wanted_by"] for one in world(client, training)["leaving"]] == [test]
    order = {first.task: first, second.task: second}[asked.task]
    worker.end(order, OutcomeKind.YIELDED, reason=asked.reason)
    run = worker.next()
    assert run.task == test  # nobody else got the device
    worker.end(run)

    again = worker.next()
    assert again.specification.array_id == training
    assert worker.yields.empty()  # one device was asked for
    poll_until(lambda: not memory.range(KEYS.folder(Kind.YIELD)).kvs, DEADLINE, "the request to be forgotten")
    told = client.task(again.task).raw["metadata"]
    assert told["excluded_workers"] == []  # it failed nowhere
    assert world(client, training)["running"] == 2

    poll_until(lambda: world(client, training)["borrowed_seconds"], DEADLINE, "the return to be noted")
    told = world(client, training)
    (borrowed,) = told["borrowings"]
    assert (borrowed["part"], borrowed["worker"], borrowed["wanted_by"]) == (again.task, worker.name, test)
    assert borrowed["asked"] <= borrowed["left"] <= borrowed["back"]
    assert told["num_borrowings"] == 1
    for part in (again, next(one for one in (first, second) if one.task != again.task)):
        worker.end(part)
    info = client.wait(training, DEADLINE)
    assert info.raw["results"]["metrics"] == {"borrowings": 1.0, "borrowed_seconds": round(told["borrowed_seconds"], 3)}
    assert not memory.range(KEYS.folder(Kind.BORROWINGS)).kvs


def test_its_run_is_told_while_it_runs_and_at_its_end(client, worker, start, capsys):
    """What parts have reported of their run, as one; a rescale is told at once, and not with the next minute's report."""
    training, (first, second) = start()
    assert world(client, training)["run"] is None
    worker.report(tasks={first.task: {"generation": 1, "world_size": 1}})
    poll_until(lambda: world(client, training)["run"], DEADLINE, "the first generation")
    now = {"generation": 2, "world_size": 2, "step": 40, "samples_per_second": 8.0}
    worker.report(tasks={first.task: {**now, "goodput": 0.5}, second.task: {**now, "step": 41, "goodput": 0.7}})
    poll_until(lambda: world(client, training)["run"]["generation"] == 2, DEADLINE, "the second generation")
    assert world(client, training)["run"] == {**now, "step": 41, "goodput": 0.6, "at": "1970-01-01T00:00:05.000Z"}
    tasks._show_training(client.task(training))
    assert "  run: generation 2, 2 workers, step 41, goodput 60.0% (as of 1970-" in capsys.readouterr().out

    worker.end(first, metrics={**now, "step": 50, "goodput": 0.8, "accuracy": 0.9})
    worker.end(second, metrics={**now, "step": 49, "goodput": 0.6})
    info = client.wait(training, DEADLINE)
    assert info.raw["results"]["metrics"] == {**now, "step": 50, "goodput": 0.7}


def test_what_it_keeps_is_not_asked_for(client, worker, start):
    """Two tests want both devices: one of them waits, because a training keeps its minimum."""
    training, orders = start()
    tests = [client.submit(["test"], priority=100) for _ in range(2)]
    asked = worker.yields.get(timeout=DEADLINE)
    (left,) = (order for order in orders if order.task == asked.task)
    worker.end(left, OutcomeKind.YIELDED)
    run = worker.next()
    worker.end(run)
    second = worker.next()
    assert {run.task, second.task} == set(tests)
    assert worker.yields.empty()
    assert world(client, training)["running"] == 1


def train(client, least, most, **fields):
    return client.train("train.py", endpoint="etcd:2379", workers=(least, most), **fields)


def test_the_minimum_starts_together(client, worker, coordinator):
    """It needs four of two cores: none starts, and says why; a second worker comes, and all start, two on each."""
    training = train(client, 4, 4)
    test = client.submit(["test"])
    run = worker.next()
    assert run.task == test  # a decision has been made, and no part was placed
    why = "starts together with 3 more of its training, or not at all"
    poll_until(lambda: why in client.task(f"{training}[0]").reason, DEADLINE, "why the minimum does not start")
    with closing(PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name="second")) as second:
        worker.end(run)
        parts = [worker.next(), worker.next(), second.next(), second.next()]
        assert {part.specification.index for part in parts} == {0, 1, 2, 3}
        assert (world(client, training)["running"], world(client, training)["minimum"]) == (4, 4)


def test_an_uneven_minimum_starts_together(client, worker, coordinator):
    """Three parts on a worker of two cores and one of one: none before there is room for all, then two and one."""
    training = train(client, 3, 3)
    why = "starts together with 2 more of its training, or not at all"
    poll_until(lambda: why in client.task(f"{training}[0]").reason, DEADLINE, "why the minimum does not start")
    with closing(
        PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name="second", cpu=1.0)
    ) as second:
        parts = [worker.next(), worker.next(), second.next()]
        assert {part.specification.index for part in parts} == {0, 1, 2}
        assert (world(client, training)["running"], second.orders.empty()) == (3, True)
        assert all(f"--rdzv-id={training}" in part.specification.command for part in parts)


def test_it_is_suspended_and_comes_again(client, worker, monkeypatch):
    """Urgent work gets a device of what it keeps: all its parts leave, and all of them come again together."""
    monkeypatch.setattr(trainings, "AWAY", 0.2)
    monkeypatch.setattr(trainings, "PRICE", 0.0)
    training = train(client, 2, 2, suspend_for=50)
    parts = {part.task: part for part in (worker.next(), worker.next())}
    common = client.submit(["common"], priority=49)
    urgent = client.submit(["urgent"], priority=50)
    asked = {worker.yields.get(timeout=DEADLINE).task for _ in parts}
    assert asked == set(parts)
    assert {one["wanted_by"] for one in world(client, training)["leaving"]} == {urgent}
    for part in parts.values():
        worker.end(part, OutcomeKind.YIELDED, exit_code=0)
    runs = [worker.next(), worker.next()]
    assert {run.task for run in runs} == {urgent, common}
    assert world(client, training)["running"] == 0
    worker.end(runs[0])
    assert client.wait(runs[0].task, DEADLINE).status == "completed"
    assert worker.orders.empty()  # one device is free, and two are needed
    worker.end(runs[1])
    again = [worker.next(), worker.next()]
    assert {part.task for part in again} == set(parts)
    for part in again:
        worker.end(part)
    assert client.wait(training, DEADLINE).status == "completed"


def test_the_next_leader_brings_what_was_suspended_back(memory, tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "AWAY", 0.2)
    monkeypatch.setattr(trainings, "PRICE", 0.0)
    first = CoordinatorInThread(memory, tmp_path, name="first")
    worker = PlayedWorker((first.url,), read_token(first.token_file))
    with first.client() as client:
        training = train(client, 2, 2, suspend_for=50)
        parts = [worker.next(), worker.next()]
        urgent = client.submit(["urgent"], priority=50)
        for part in parts:
            assert worker.yields.get(timeout=DEADLINE)
            worker.end(part, OutcomeKind.YIELDED)
        run = worker.next()
        assert run.task == urgent
    second = CoordinatorInThread(memory, tmp_path, name="second")
    try:
        worker.link.addresses[:] = [second.url]
        first.stop()
        worker.end(run)
        again = [worker.next(), worker.next()]
        assert {part.task for part in again} == {part.task for part in parts}
        for part in again:
            worker.end(part)
        with second.client() as client:
            assert client.wait(training, DEADLINE).status == "completed"
    finally:
        worker.close()
        second.stop()


def test_work_of_lower_priority_waits(client, worker, start):
    _, orders = start()
    low, high = client.submit(["low"], priority=-20), client.submit(["high"])
    asked = worker.yields.get(timeout=DEADLINE)
    assert asked.reason.endswith(high)
    worker.end({order.task: order for order in orders}[asked.task], OutcomeKind.YIELDED)
    run = worker.next()
    assert run.task == high
    worker.end(run)
    assert worker.next().task == low  # it was there before the training came again


def test_when_it_has_finished_what_waits_is_ended(client, worker, start, memory):
    training, orders = start()
    for order in orders:
        worker.end(order)
    info = client.wait(training, DEADLINE)
    assert (info.status, info.exit_code) == ("completed", 0)
    assert info.raw["results"]["counts"] == {"completed": 2, "skipped": 2}
    assert worker.orders.empty()
    assert [kv.key for kind in (Kind.TASK, Kind.ATTEMPT) for kv in memory.range(KEYS.folder(kind)).kvs] == []


PLAN = """
tasks:
  data: {run: prepare}
  fit: {train: {script: train.py, workers: 1:3, endpoint: 'etcd:2379'}, after: data}
  test: {run: pytest, after: fit}
"""


def test_a_training_of_a_plan(client, worker):
    """It starts after what it comes after, with a run of its own; what comes after it starts when it has finished."""
    plan = client.submit_plan(PLAN)
    worker.end(worker.next())
    parts = [worker.next(), worker.next()]
    (training,) = {part.specification.array_id for part in parts}
    assert all(f"--rdzv-id={training}" in part.specification.command for part in parts)
    assert {part.specification.plan for part in parts} == {plan}
    for part in parts:
        worker.end(part)
    assert worker.next().specification.command == ("sh", "-ec", "pytest")
    assert client.task(training).status == "completed"


def test_the_same_training_under_a_key_is_one(client, worker):
    """Whatever id each submission has chosen; a retry of one that has failed goes on with its run."""
    fields = {"endpoint": "etcd:2379", "key": "nightly"}
    training = client.train("train.py", workers=(1, 1), **fields)
    assert client.train("train.py", workers=(1, 1), **fields) == training
    with pytest.raises(FarmRefused, match="another request was submitted under the key 'nightly'"):
        client.train("train.py", workers=(1, 2), **fields)
    worker.end(worker.next(), OutcomeKind.FAILED)
    assert client.wait(training, DEADLINE).status == "failed"
    again = client.retry(training)
    part = worker.next()
    assert part.specification.array_id == again != training
    assert f"--rdzv-id={training}" in part.specification.command


def test_a_training_that_fails(client, worker):
    training = client.train("train.py", endpoint="etcd:2379", workers=(1, 1))
    worker.end(worker.next(), OutcomeKind.FAILED, exit_code=3)
    info = client.wait(training, DEADLINE)
    assert (info.status, info.exit_code) == ("failed", 3)


def test_the_next_leader_asks_nobody_twice_and_starts_nothing_that_is_over(memory, tmp_path):
    """The leader goes when it has asked a part; one part completes, and the others must not start under the next."""
    first = CoordinatorInThread(memory, tmp_path, name="first")
    worker = PlayedWorker((first.url,), read_token(first.token_file))
    with first.client() as client:
        training = client.train("train.py", endpoint="etcd:2379", workers=(1, 4))
        orders = [worker.next(), worker.next()]
        test = client.submit(["test"])
    asked = worker.yields.get(timeout=DEADLINE)
    second = CoordinatorInThread(memory, tmp_path, name="second")
    try:
        worker.link.addresses[:] = [second.url]
        first.stop()
        assert worker.yields.get(timeout=DEADLINE) == asked  # told again over the new connection
        for order in orders:
            worker.end(order, OutcomeKind.YIELDED if order.task == asked.task else OutcomeKind.COMPLETED)
        with second.client() as client:
            run = worker.next()
            assert run.task == test
            worker.end(run)
            assert client.wait(test, DEADLINE).status == "completed"
            assert client.wait(training, DEADLINE).status == "completed"
        assert worker.orders.empty()
        assert all(worker.yields.get() == asked for _ in range(worker.yields.qsize()))
    finally:
        worker.close()
        second.stop()


def test_a_part_that_does_not_leave_is_taken_back(client, worker, start, monkeypatch):
    start()
    test = client.submit(["test"])
    asked = worker.yields.get(timeout=DEADLINE)
    monkeypatch.setattr(
        lending, "OVERDUE", 0.0
    )  # not before it was asked: it would not be told of a request that is over
    client.submit(["other"], priority=-20)  # for which the leader looks again
    assert worker.cancelled.get(timeout=DEADLINE).task == asked.task
    assert worker.next().task == test


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"training": 1}, "an array of its parts"),
        ({"training": 3, "array": 2}, "keeps 3 parts, and has 2"),
        ({"training": 1, "array": 2, "suspend_for": 0}, "a priority above their own, which is 0"),
        ({"suspend_for": 5}, "suspend_for=5 is of trainings"),
    ],
)
def test_what_is_no_training(client, worker, fields, text):
    with pytest.raises(FarmRefused, match=text):
        client.submit(["x"], **fields)
