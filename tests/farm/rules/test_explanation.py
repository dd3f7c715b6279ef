"""Why a task does not run, in one sentence with the counts."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import ReadyTask, WorkerOffer
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings

TWO_GPUS = (Need(amounts={"gpu": 2}),)
GPUS = WorkerOffer(worker="", devices={"gpu": 2, "cpu": 8, "memory": 1000}, labels=("linux",))


def farm(*, workers=3, **words):
    scheduler = ShapeScheduler(settings=SchedulerSettings(reserve_after=1.0))
    for number in range(workers):
        scheduler.worker_offers(WorkerOffer(worker=f"w{number}", devices=GPUS.devices, labels=GPUS.labels, **words))
    return scheduler


def why(scheduler, now=0.0, **words):
    """A task that asks for this: what is said of it after a decision."""
    scheduler.task_ready(ReadyTask(task="it", submitted=100.0, **words))
    scheduler.decide(100, now)
    return scheduler.explain("it", now)


def occupy(scheduler, number, expected, project="vision", **words):
    for count in range(number):
        scheduler.task_ready(
            ReadyTask(task=f"{project}{count}", project=project, needs=TWO_GPUS, expected=expected, **words)
        )
    scheduler.decide(100, 0.0)


def test_the_queue_and_when_somebody_is_free():
    """The sentence of the farm's description."""
    scheduler = farm()
    occupy(scheduler, 15, 40.0)
    assert why(scheduler, project="vision", needs=TWO_GPUS) == (
        "waits for 2 x gpu; 3 workers have that, the earliest is free in about 40 s; 12 tasks of project vision are ahead"
    )


def test_another_project_comes_first():
    scheduler = farm()
    occupy(scheduler, 15, 40.0)
    scheduler.task_ready(ReadyTask(task="x", project="audio", needs=TWO_GPUS))
    said = why(scheduler, project="vision", needs=TWO_GPUS)
    assert said.endswith("are ahead; project audio with a smaller share of the farm comes first")


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (Need(amounts={"gpu": 3}), "waits for 3 x gpu; no worker has more than 2 x gpu"),
        (Need(amounts={"tpu": 1}), "waits for 1 x tpu; no worker has tpu"),
        (
            Need(amounts={"cpu": 1}, labels=("linux", "secret:A", "secret:B")),
            "waits for 1 x cpu on a worker labelled linux and with the secrets A and B; no worker has the secrets A and B",
        ),
        (
            Need(amounts={"cpu": 1, "memory": 2000.5}),
            "waits for 1 x cpu, 2000.5 MiB of memory; no worker has more than 1000 MiB of memory",
        ),
        (
            Need(labels=("h100", "new")),
            "waits for 1 x cpu on a worker labelled h100 and new; no worker is labelled h100 and new",
        ),
        (
            Need(amounts={"gpu": 3}, labels=("linux",)),
            "waits for 3 x gpu on a worker labelled linux; no worker labelled linux has more than 2 x gpu",
        ),
    ],
)
def test_no_worker_could_ever_run_it(need, said):
    assert why(farm(), needs=(need,)) == said


def test_alternatives_of_which_none_is_there():
    said = why(farm(), needs=(Need(amounts={"tpu": 1}), Need(amounts={"cpu": 99})))
    assert said == "waits for 1 x tpu, or 99 x cpu; no worker has tpu; no worker has more than 8 x cpu"


def test_no_class_has_all_of_it_together():
    scheduler = farm()
    scheduler.worker_offers(WorkerOffer(worker="big", devices={"cpu": 64}))
    said = why(scheduler, needs=(Need(amounts={"cpu": 64, "gpu": 1}),))
    assert said == "waits for 1 x gpu, 64 x cpu; no worker has all of that together"


def test_no_workers():
    assert why(farm(workers=0), needs=()) == "waits for 1 x cpu; there are no workers"


def test_workers_that_take_nothing_new():
    assert why(farm(accepting=False), needs=()) == "waits for 1 x cpu; 3 workers have that, but take no new tasks"


def test_unknown_durations():
    scheduler = farm(workers=1)
    occupy(scheduler, 1, None)
    said = why(scheduler, project="vision", needs=TWO_GPUS)
    assert said == "waits for 2 x gpu; 1 worker has that, nobody knows when one will be free"


def test_a_gang():
    """Which is too large, or has to wait for the last of them."""
    assert why(farm(), needs=TWO_GPUS, gang=4) == (
        "waits for 4 workers at once with 2 x gpu each; only 3 of the 4 workers that it needs at once are there"
    )
    scheduler = farm()
    occupy(scheduler, 1, 40.0)
    assert why(scheduler, 10.0, project="vision", needs=TWO_GPUS, gang=3) == (
        "waits for 3 workers at once with 2 x gpu each; 3 workers have that, 3 of them are free in about 30 s"
    )


def test_workers_that_it_avoids():
    scheduler = farm(workers=2)
    occupy(scheduler, 2, 40.0)
    assert why(scheduler, project="vision", needs=TWO_GPUS, excluded=("w0",)) == (
        "waits for 2 x gpu; 1 worker has that, the earliest is free in about 40 s; 1 worker that it is to avoid has it, too"
    )


def test_limits():
    """None of it, all of it held, somebody before it."""
    scheduler = farm()
    said = why(scheduler, needs=(), limits={"spice": 1})
    assert said.startswith(
        "waits for 1 x cpu; it needs 1 of the limit spice, of which the farm has 0: it can never start;"
    )
    scheduler.licences({"matlab": 2})
    scheduler.task_ready(ReadyTask(task="one", limits={"matlab": 1}))
    scheduler.decide(1, 0.0)
    assert "; it needs 2 of the limit matlab, 1 of 2 is free;" in why(scheduler, needs=(), limits={"matlab": 2})
    scheduler.task_ready(ReadyTask(task="later", limits={"matlab": 1}, submitted=101.0))
    scheduler.decide(9, 0.0)
    assert "; tasks before it wait for the limit matlab, 1 of 2 is free;" in scheduler.explain("later", 0.0)


def test_workers_held_free():
    """For it, and for another."""
    scheduler = farm(workers=1)
    scheduler.task_ready(ReadyTask(task="long", needs=(Need(amounts={"cpu": 1}),), expected=20.0))
    scheduler.decide(1, 0.0)
    scheduler.task_ready(ReadyTask(task="it", needs=(Need(amounts={"cpu": 8}),), submitted=1.0))
    for now in range(1, 5):
        names = [f"{number}@{now}" for number in range(7)]
        for name in names:
            scheduler.task_ready(ReadyTask(task=name, submitted=now + 1.0))
        scheduler.decide(9, now)
        for name in names:
            scheduler.task_gone(name)
    assert scheduler.explain("it", 5.0) == (
        "waits for 8 x cpu; 1 worker has that, w0 is held free for it and ready in about 15 s"
    )
    scheduler.task_ready(ReadyTask(task="other", needs=(Need(amounts={"cpu": 2}),), submitted=9.0))
    scheduler.decide(9, 5.0)
    assert scheduler.explain("other", 5.0) == (
        "waits for 2 x cpu; 1 worker has that, 1 of them with room is held free for tasks that have waited for longer; "
        "1 task of project default is ahead"
    )


def test_a_task_that_does_not_wait():
    scheduler = farm()
    assert scheduler.explain("it", 0.0) == "is not among the tasks that may start"
    assert why(scheduler, needs=TWO_GPUS, gang=2) == "is about to start on w0, w1"
    scheduler.task_placed(ReadyTask(task="it"), ("w0", "w1"), 0)
    assert scheduler.explain("it", 0.0) == "was given to w0, w1"
