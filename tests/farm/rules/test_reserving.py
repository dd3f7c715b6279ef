"""Reservations by people: who is held when, and that the scheduler keeps to it over random arrivals."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.reserving.times import Held, Reserved, choose, held_now, next_change, overlap
from dtf_lightning.farm.rules.scheduling.door import ReadyTask, WorkerOffer
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler

NAMES = ("w0", "w1", "w2")


def reserved(name: str, workers: str, begin: float, end: float, lead: float = 0.0, project: str = "") -> Reserved:
    return Reserved(name=name, workers=tuple(workers.split()), begin=begin, end=end, lead=lead, project=project)


def test_how_a_worker_is_held():
    one = [reserved("r", "w0", 100.0, 200.0, lead=50.0, project="demo")]
    held = [held_now(one, now).get("w0") for now in (49.0, 50.0, 99.0, 100.0, 199.0, 200.0)]
    before, during = Held(until=100.0), Held(until=100.0, project="demo")
    assert held == [None, before, before, during, during, None]
    assert [next_change(one, now) for now in (0.0, 50.0, 100.0, 200.0)] == [50.0, 100.0, 200.0, math.inf]


def test_which_workers_are_chosen():
    """Idle ones first; those that have another reservation then are none."""
    present = [reserved("r", "a", 100.0, 200.0)]
    assert choose(2, ["a", "b", "c"], present, 150.0, 300.0, busy=["b"]) == (("c", "b"), "")
    assert choose(2, ["a", "b", "c"], present, 200.0, 300.0, busy=["b"]) == (("a", "c"), "")
    assert (
        choose(3, ["a", "b", "c"], present, 150.0, 300.0, ())[1]
        == "3 workers are wanted, and 1 of the 3 that could do it are reserved then"
    )
    assert choose(4, ["a", "b", "c"], [], 0.0, 1.0, ())[1] == "4 workers are wanted, and 3 of the farm's could do it"
    assert overlap(["b", "a"], present, 199.0, 300.0) == "a is reserved already then, by r"
    assert overlap(["b", "a"], present, 200.0, 300.0) == ""


moments = st.integers(0, 60).map(float)
plans = st.lists(
    st.builds(
        lambda number, workers, begin, lasts, lead, project: Reserved(
            name=f"r{number}",
            workers=tuple(sorted(workers)),
            begin=begin,
            end=begin + lasts,
            lead=lead,
            project=project,
        ),
        number=st.integers(0, 99),
        workers=st.sets(st.sampled_from(NAMES), min_size=1),
        begin=moments,
        lasts=st.integers(1, 30).map(float),
        lead=st.sampled_from([0.0, 10.0]),
        project=st.sampled_from(["", "demo"]),
    ),
    max_size=3,
    unique_by=lambda one: one.name,
)
tasks = st.lists(
    st.tuples(
        moments, st.sampled_from(["default", "demo"]), st.sampled_from([None, 3.0, 8.0]), st.sampled_from([1.0, 2.0])
    ),
    max_size=12,
)


def allowed(plan: list[Reserved], worker: str, project: str, expected: float | None, now: float) -> bool:
    """Whether a task may start there now, from the words of the promise."""
    for one in sorted(plan, key=lambda one: (one.begin, one.name)):
        if worker in one.workers and one.begin - one.lead <= now < one.end:
            if now >= one.begin:
                return project == one.project
            return expected is not None and now + expected <= one.begin
    return True


@settings(max_examples=40)
@given(plan=plans, arrivals=tasks, comes=st.sampled_from([0.0, 25.0]))
def test_the_scheduler_keeps_to_them(plan, arrivals, comes):
    """At every second: nothing starts where it may not, and nothing waits beside an idle worker where it may; a worker that comes
    later is held, too; at the end all has run."""
    scheduler = ShapeScheduler()
    held: dict[str, Held] = {}
    running: dict[str, tuple[str, float, float]] = {}
    waiting: dict[str, tuple[str, float | None, float]] = {}
    left = sorted(arrivals, key=lambda one: one[0])
    for now in map(float, range(200)):
        wanted = held_now(plan, now)
        for worker in sorted(held.keys() | wanted.keys()):
            if held.get(worker) != wanted.get(worker):
                scheduler.hold(worker, wanted.get(worker))
        held = wanted
        for number, name in enumerate(NAMES):
            if now == (comes if number == 2 else 0.0):
                scheduler.worker_offers(WorkerOffer(worker=name, devices={"cpu": 2}))
        for task, (_, _, end) in list(running.items()):
            if end <= now:
                del running[task]
                scheduler.task_gone(task)
        while left and left[0][0] <= now:
            at, project, expected, cpu = left.pop(0)
            task = f"t{len(left)}"
            waiting[task] = project, expected, cpu
            scheduler.task_ready(
                ReadyTask(
                    task=task, project=project, submitted=at, needs=(Need(amounts={"cpu": cpu}),), expected=expected
                )
            )
        for placement in scheduler.decide(100, now):
            project, expected, cpu = waiting.pop(placement.task)
            (worker,) = placement.workers
            assert allowed(plan, worker, project, expected, now)
            running[placement.task] = worker, cpu, now + (expected or 4.0)
        for project, expected, cpu in waiting.values():
            for worker in NAMES if now >= comes else NAMES[:2]:
                free = 2.0 - sum(taken for where, taken, _ in running.values() if where == worker)
                assert free < cpu or not allowed(plan, worker, project, expected, now)
    assert not waiting


@pytest.mark.parametrize("project", ["", "demo"])
def test_why_a_task_waits(project):
    scheduler = ShapeScheduler()
    scheduler.worker_offers(WorkerOffer(worker="w", devices={"cpu": 1}))
    scheduler.hold("w", Held(until=0.0, project=project))
    scheduler.task_ready(ReadyTask(task="t"))
    assert scheduler.decide(1, 10.0) == []
    assert "1 of them is reserved (dtf farm reservation list)" in scheduler.explain("t", 10.0)
    scheduler.hold("w", None)
    assert [one.task for one in scheduler.decide(1, 10.0)] == ["t"]
