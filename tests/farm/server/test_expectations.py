"""History reaches the scheduler: what is known of a task's like orders its plan, and says when a worker will be free."""

from __future__ import annotations

import re
import time

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.server.scheduling import history as told
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture
def often(monkeypatch):
    """How long tasks took is read again and again; what was read is here."""
    read = []
    durations = History.durations

    def noted(history):
        read.append(durations(history))
        return read[-1]

    monkeypatch.setattr(History, "durations", noted)
    monkeypatch.setattr(told, "EVERY", 0.1)
    return read


def test_longest_first_and_when_one_is_free(often, client, worker):
    for name, seconds in (("short", 10.0), ("long", 500.0)):
        client.submit(["x"], name=name)
        worker.end(worker.next(), started=100.0, ended=100.0 + seconds)
    known = lambda: {one.name for one in often[-1]} == {"short", "long"}  # noqa: E731
    poll_until(lambda: often and known(), DEADLINE, "both to be in the database")
    seen = len(often)
    poll_until(lambda: len(often) > seen + 1, DEADLINE, "the leader to be told")
    client.submit(["x"], name="other", needs={"cpu": 2})
    blocker = worker.next()
    plan = new_task_id(time.time())
    tasks = {name: client.submit(["x"], name=name, plan=plan, needs={"cpu": 2}) for name in ("short", "long")}
    worker.end(blocker)
    assert worker.next().task == tasks["long"]
    reason = poll_until(lambda: client.task(tasks["short"]).reason, DEADLINE, "the leader to say why")
    (about,) = re.findall(r"the earliest is free in about (\d+) s", reason)
    assert 400 < int(about) <= 500


@pytest.mark.parametrize("coordinator", [{"load_balancer.strategy": "fastest"}], indirect=True)
def test_a_kind_goes_to_the_class_in_which_it_is_fast(often, coordinator, client):
    """Two workers with room, of two classes; what one kind is quick on is slow for the other."""
    token = read_token(coordinator.token_file)
    workers = {
        name: PlayedWorker((coordinator.url,), token, name, session=name, cpu=1.0, **{name: 1.0})
        for name in ("npu", "tpu")
    }
    try:
        seconds = {("fit", "npu"): 9.0, ("fit", "tpu"): 90.0, ("read", "npu"): 90.0, ("read", "tpu"): 9.0}
        for (kind, name), took in seconds.items():
            workers[name].wait_until_welcome()
            for _ in range(3):
                task = client.submit(["x"], name=kind, needs={name: 1})
                workers[name].end(workers[name].next(), started=100.0, ended=100.0 + took)
                client.wait(task, DEADLINE)
        poll_until(lambda: sum(len(one.workers) for one in often[-1]) == 12, DEADLINE, "all to be in the database")
        seen = len(often)
        poll_until(lambda: len(often) > seen + 1, DEADLINE, "the leader to be told")
        for kind, name in (("fit", "npu"), ("read", "tpu")):
            task = client.submit(["x"], name=kind)
            order = workers[name].next()
            assert order.task == task
            workers[name].end(order)
    finally:
        for worker in workers.values():
            worker.close()


def test_no_decision_asks_the_database(client, worker, monkeypatch):
    """What the database would say is read by a thread alone; where it fails, the farm goes on."""

    def broken(history):
        raise told.ResultsBusy("away")

    monkeypatch.setattr(History, "durations", broken)
    task = client.submit(["x"])
    worker.end(worker.next())
    assert client.wait(task, DEADLINE).status == "completed"
