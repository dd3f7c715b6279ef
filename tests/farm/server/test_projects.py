"""How a farm is shared: projects with weights and limits, licences, and what is said of those that do not exist."""

from __future__ import annotations

import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process


def dtf(coordinator, *words) -> int:
    """`dtf farm WORDS`, in this process."""
    return main(["farm", *words, "--farm", coordinator.url, "--token-file", str(coordinator.token_file)])


def test_an_unknown_project(client):
    client.set_project("vision", weight=2.0)
    with pytest.raises(FarmRefused) as caught:
        client.submit(["x"], project="visoin")
    assert caught.value.status == 422
    assert "no project is called 'visoin'; did you mean 'vision'? To make it: dtf farm project set visoin" in str(
        caught.value
    )
    client.submit(["x"], project="default")
    client.submit(["x"], project="vision")


def test_set_and_listed(coordinator, client, capsys):
    assert dtf(coordinator, "project", "set", "vision", "--weight", "3", "--limit", "matlab=1") == 0
    assert dtf(coordinator, "project", "set", "vision", "--weight", "2") == 0  # its limits stay
    assert dtf(coordinator, "licence", "set", "matlab", "2") == 0
    capsys.readouterr()
    assert dtf(coordinator, "project", "list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["PROJECT", "WEIGHT", "LIMITS"], ["default", "1"], ["vision", "2", "matlab=1"]]
    assert dtf(coordinator, "licence", "list") == 0
    assert capsys.readouterr().out.split() == ["LICENCE", "TOTAL", "matlab", "2"]
    none = {"max_running": None, "max_pending": None}
    assert client.projects() == [
        {"name": "default", "weight": 1.0, "limits": {}, **none},
        {"name": "vision", "weight": 2.0, "limits": {"matlab": 1}, **none},
    ]
    assert dtf(coordinator, "project", "set", "vision", "--limit", "matlab") == 2
    assert "expected LICENCE=N" in capsys.readouterr().err


@pytest.mark.parametrize("weight", [0, -1])
def test_a_weight_that_is_none(client, weight):
    with pytest.raises(FarmRefused, match="greater than 0"):
        client.set_project("vision", weight=weight)


def test_weights_reach_the_leader(client, worker):
    """Of twice the weight a project gets twice the share."""
    client.set_project("a", weight=2.0)
    client.set_project("b")
    blocker = client.submit(["x"], needs={"cpu": 2})
    order = worker.next()
    for project in ("a", "b"):
        for _ in range(6):
            client.submit(["x"], project=project, needs={"cpu": 0.2})
    assert order.task == blocker
    worker.end(order)
    started = [worker.next() for _ in range(10)]
    shares = [one.specification.project for one in started[:6]]
    assert (shares.count("a"), shares.count("b")) == (4, 2)


def test_licences(client, worker):
    with pytest.raises(
        FarmRefused, match=r"no licence is called 'matlab'; there are none. To say how many there are: dtf"
    ):
        client.submit(["x"], limits={"matlab": 1}, needs={"cpu": 0.1})
    client.set_licence("matlab", 2)
    with pytest.raises(FarmRefused, match="did you mean 'matlab'"):
        client.submit(["x"], limits={"matlba": 1})
    with pytest.raises(
        FarmRefused, match=r"it needs 3 of the licence matlab, of which there are 2: it could never start"
    ):
        client.submit(["x"], limits={"matlab": 3})
    tasks = [client.submit(["x"], limits={"matlab": 1}, needs={"cpu": 0.1}) for _ in range(3)]
    first, second = worker.next(), worker.next()
    assert {first.task, second.task} < set(tasks)
    (third,) = set(tasks) - {first.task, second.task}
    reason = poll_until(lambda: client.task(third).reason, DEADLINE, "the leader to say why")
    assert "it needs 1 of the limit matlab, 0 of 2 are free" in reason
    worker.end(first)
    assert worker.next().task == third


def test_a_projects_own_limit(client, worker):
    """Also of tasks that wait already when it is set."""
    client.set_licence("matlab", 5)
    client.set_project("vision")
    blocker = client.submit(["x"], needs={"cpu": 2})
    order = worker.next()
    assert order.task == blocker
    tasks = [client.submit(["x"], project="vision", limits={"matlab": 1}, needs={"cpu": 0.1}) for _ in range(2)]
    client.set_project("vision", limits={"matlab": 1})
    worker.end(order)
    first = worker.next()
    (second,) = set(tasks) - {first.task}
    reason = poll_until(lambda: client.task(second).reason, DEADLINE, "the leader to say why")
    assert "the limit matlab of project vision, 0 of 1 is free" in reason.replace("are free", "is free")
    client.set_project("vision", limits={"matlab": 2})
    assert worker.next().task == second


def test_as_many_of_a_projects_tasks_run_as_it_may(coordinator, client, worker):
    """Those that run when it is set count; of others none is held up; a larger one, or none, lets more start."""
    client.set_project("vision")
    first, second = (client.submit(["x"], project="vision", needs={"cpu": 0.1}) for _ in range(2))
    orders = [worker.next(), worker.next()]
    assert {order.task for order in orders} == {first, second}
    assert dtf(coordinator, "project", "set", "vision", "--max-running", "2") == 0
    third, fourth = (client.submit(["x"], project="vision", needs={"cpu": 0.1}) for _ in range(2))
    other = client.submit(["x"], needs={"cpu": 0.1})
    assert worker.next().task == other
    why = poll_until(lambda: client.task(third).reason, DEADLINE, "the leader to say why")
    assert "it needs 1 of the limit max_running of the project vision, 0 of 2 are free" in why
    worker.end(orders[0])
    assert worker.next().task == third
    assert dtf(coordinator, "project", "set", "vision", "--max-running", "0") == 0
    assert worker.next().task == fourth


def test_as_many_of_a_projects_tasks_are_taken_as_it_may_have(coordinator, client, worker, capsys):
    """More are refused with the counts, all of a submission or none; the same again is not counted twice."""
    assert dtf(coordinator, "project", "set", "vision", "--max-pending", "2", "--weight", "3") == 0
    assert capsys.readouterr().out == "vision: weight 3 max_pending=2\n"
    asked = [{"task_id": new_task_id(time.time()), "command": ["x"], "project": "vision"} for _ in range(3)]
    impatient = Connection((coordinator.url,), read_token(coordinator.token_file), patience=0.0)
    with pytest.raises(FarmRefused) as caught:
        impatient.ask("POST", "/api/tasks", {"tasks": asked})
    impatient.close()
    assert caught.value.status == 429
    assert "may have 2 tasks that are not done, of which 0 are there, and 3 tasks are too many by 1" in str(
        caught.value
    )
    client.submit_all(asked[:2])
    client.submit_all(asked[:2])
    client.submit(["x"])


def test_everything_is_there_after_a_restart(memory, coordinator, client, worker, tmp_path):
    from support.farm.server import CoordinatorInThread

    client.set_project("vision", weight=2.0)
    client.set_licence("matlab", 1)
    other = CoordinatorInThread(memory, tmp_path, name="c1")
    try:
        with other.client() as asks:
            assert asks.licences() == {"matlab": 1}
            assert [one["name"] for one in asks.projects()] == ["default", "vision"]
    finally:
        other.stop()
