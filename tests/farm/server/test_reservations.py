"""Reservations at a real coordinator: made, honoured, shown, over by themselves, cancelled, and refused where they can never be met."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.scheduling import trainings
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture
def workers(coordinator):
    """`w-1` and `w-2`, each with a core; the first one has a device more."""
    with contextlib.ExitStack() as stack:
        token = coordinator.token_file.read_text().strip()
        made = []
        for number in (1, 2):
            made.append(
                PlayedWorker(
                    (coordinator.url,), token, name=f"w-{number}", cpu=1.0, **{"a": 1.0} if number == 1 else {}
                )
            )
            stack.callback(made[-1].close)
            made[-1].wait_until_welcome()
        yield made


def test_made_honoured_and_cancelled(client, coordinator, workers, capsys):
    """What runs goes on; nothing else starts; the reason is told; when it is cancelled the next task starts."""
    farm = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
    first, second = workers
    long = client.submit(["x"], needs={"cpu": 1, "a": 1})
    order = first.next()
    words = ["w-1", "w-2", "--for", "2h", "--reason", "new disks"]
    assert main(["farm", "reservation", "add", *words, *farm]) == 0
    name = capsys.readouterr().out.partition(":")[0]
    waits = client.submit(["x"])
    poll_until(lambda: "2 of them are reserved" in client.task(waits).reason, DEADLINE, "the reason to be told")
    assert main(["farm", "reservation", "list", *farm]) == 0
    said = capsys.readouterr().out
    assert "active" in said
    assert "new disks" in said
    assert f"{name}: w-1 still runs {long}" in said
    first.end(order)
    assert main(["farm", "reservation", "cancel", name, *farm]) == 0
    poll_until(lambda: first.orders.qsize() + second.orders.qsize() == 1, DEADLINE, "the task to start")


def test_for_a_project_and_over_by_itself(client, workers):
    """Of two workers the idle one is taken; there only the project's task starts, and others when its time is over."""
    first, second = workers
    client.connection.ask("PUT", "/api/projects/demo", {"weight": 1.0})
    client.submit(["x"], needs={"cpu": 1, "a": 1})
    first.next()
    made = client.reserve(needs={"cpu": 1}, seconds=3600, project="demo")
    assert (made["workers"], made["state"], made["project"]) == (["w-2"], "active", "demo")
    waits = client.submit(["x"])
    demo = client.submit(["x"], project="demo")
    order = second.next()
    assert order.task == demo
    second.end(order)
    client.cancel_reservation(made["reservation"])
    order = second.next()
    assert order.task == waits
    short = client.reserve(["w-2"], seconds=1.0)
    second.end(order)
    last = client.submit(["x"])
    assert second.next().task == last
    assert [one["state"] for one in client.reservations()] == ["over"]
    assert client.reservations()[0]["reservation"] == short["reservation"]


def test_what_can_never_be_met(client, workers):
    now = datetime.now(UTC)
    made = client.reserve(["w-1"], begin=now + timedelta(hours=1), seconds=3600)
    assert made["state"] == "to come"
    for words, reason in (
        ({"workers": ["w-3"]}, "this farm knows no worker 'w-3'; it has w-1, w-2"),
        (
            {"workers": ["w-1"], "begin": now + timedelta(hours=1.5)},
            f"w-1 is reserved already then, by {made['reservation']}",
        ),
        ({"needs": {"gpu": 1}}, "1 workers are wanted, and 0 of the farm's could do it"),
        (
            {"needs": {"cpu": 1}, "number": 2, "begin": now + timedelta(hours=1.5)},
            "and 1 of the 2 that could do it are reserved then",
        ),
        ({"workers": ["w-1"], "begin": now - timedelta(hours=2)}, "it would be over by now"),
        ({"workers": ["w-1"], "project": "nobody"}, "no project is called 'nobody'"),
        ({}, "say which workers"),
    ):
        with pytest.raises(FarmRefused) as refused:
            client.reserve(words.pop("workers", ()), seconds=3600, **words)
        assert reason in str(refused.value)
    with pytest.raises(FarmRefused, match="this farm has no reservation 'r-0'"):
        client.cancel_reservation("r-0")
    assert len(client.reservations()) == 1


def test_the_next_leader_keeps_to_it(memory, tmp_path):
    """It is in the record: a coordinator that starts later honours it."""
    with contextlib.ExitStack() as stack:
        before = CoordinatorInThread(memory, tmp_path)
        worker = PlayedWorker((before.url,), before.token_file.read_text().strip(), cpu=1.0)
        stack.callback(worker.close)
        worker.wait_until_welcome()
        with before.client() as client:
            client.reserve(["w"], seconds=3600)
        before.stop()
        after = CoordinatorInThread(memory, tmp_path)
        stack.callback(after.stop)
        worker.hold_off()
        worker.link.addresses = [after.url]
        worker.come_back()
        worker.wait_until_welcome()
        client = stack.enter_context(after.client())
        task = client.submit(["x"])
        poll_until(lambda: "1 of them is reserved" in client.task(task).reason, DEADLINE, "the reason to be told")
        assert worker.orders.empty()


def test_a_training_gives_back_what_it_does_not_keep(client, worker, monkeypatch):
    """Of two parts on the reserved worker the one beyond the minimum is asked to leave, and does not come again before its end."""
    monkeypatch.setattr(trainings, "AWAY", 0.0)
    monkeypatch.setattr(trainings, "PRICE", 0.0)
    training = client.train("train.py", endpoint="etcd:2379", workers=(1, 2))
    orders = {order.task: order for order in (worker.next(), worker.next())}
    made = client.reserve(["w"], seconds=3600)
    asked = worker.yields.get(timeout=DEADLINE)
    assert asked.reason == f"gave its device back for the reservation {made['reservation']}"
    worker.end(orders.pop(asked.task), OutcomeKind.YIELDED, reason=asked.reason)
    (kept,) = orders
    poll_until(
        lambda: list(client.reservations()[0]["running"].get("w", ())) == [kept], DEADLINE, "the other one to stay"
    )
    assert client.task(training).raw["metadata"]["training"]["running"] == 1
    assert worker.yields.empty()
    assert worker.orders.empty()
    client.cancel_reservation(made["reservation"])
    assert worker.next().task == asked.task
