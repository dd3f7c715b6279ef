"""Stories for schedulers: what may happen, as data, and what must hold after each step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from hypothesis import strategies as st

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import ReadyTask, WorkerOffer

TASKS = [f"t{number}" for number in range(24)]
WORKERS = [f"w{number}" for number in range(6)]
PROJECTS = ["audio", "text", "vision"]
DIGESTS = ["d0", "d1"]

SMALL = Need(amounts={"cpu": 1, "memory": 2})
NEEDS = [
    (),
    (SMALL,),
    (Need(amounts={"cpu": 2}),),
    (Need(amounts={"cpu": 4, "memory": 4}),),
    (Need(amounts={"gpu": 1, "cpu": 1}),),
    (Need(amounts={"gpu": 0.5}),),
    (Need(amounts={"gpu": 1}, labels=("new",)), Need(amounts={"cpu": 3})),
    (Need(amounts={"cpu": 1}, exclusive=True),),
    (Need(amounts={"cpu": 1}, labels=("linux",)), Need(amounts={"gpu": 2})),
    (Need(amounts={"fpga": 1}),),
]
OFFERS = [
    WorkerOffer(worker="", devices={"cpu": 4, "memory": 8}),
    WorkerOffer(worker="", devices={"cpu": 2, "memory": 4}, labels=("linux",), cost=0.5),
    WorkerOffer(worker="", devices={"cpu": 4, "memory": 8, "gpu": 2}, labels=("linux", "new"), cost=3.0, speed=2.0),
    WorkerOffer(worker="", devices={"cpu": 4, "memory": 8, "gpu": 1}, labels=("linux",), cost=3.0),
]

SPEEDS = [
    {},
    {},
    {"cpu": 2.0},
    {"cpu, linux": 4.0, "gpu, linux, new": 0.5},
    {"gpu, linux": 3.0, "cpu": 0.25, "cpu, linux": 0.25},
]


@dataclass(frozen=True)
class Step:
    """One thing that happens: the name of a door and its arguments."""

    what: str
    arguments: tuple[Any, ...] = ()


def tasks() -> st.SearchStrategy[ReadyTask]:
    return st.builds(
        ReadyTask,
        task=st.sampled_from(TASKS),
        project=st.sampled_from(PROJECTS),
        plan=st.sampled_from(["", "", "p1", "p2"]),
        priority=st.integers(0, 2),
        submitted=st.integers(0, 20).map(float),
        sequence=st.integers(0, 9),
        needs=st.sampled_from(NEEDS),
        gang=st.sampled_from([1, 1, 1, 1, 2, 3]),
        expected=st.sampled_from([None, 1.0, 3.0, 9.0]),
        speeds=st.sampled_from(SPEEDS),
        excluded=st.lists(st.sampled_from(WORKERS), max_size=2).map(tuple),
        limits=st.sampled_from([{}, {}, {}, {"matlab": 1}, {"matlab": 2}, {"matlab": 1, "spice": 1}]),
        near=st.lists(st.sampled_from(DIGESTS), max_size=2).map(tuple),
    )


def offers() -> st.SearchStrategy[WorkerOffer]:
    return st.builds(
        replace,
        st.sampled_from(OFFERS),
        worker=st.sampled_from(WORKERS),
        accepting=st.sampled_from([True, True, True, False]),
        cached=st.lists(st.sampled_from(DIGESTS), max_size=2).map(frozenset),
    )


def happenings() -> st.SearchStrategy[Step]:
    name = st.sampled_from(TASKS)
    nth = st.integers(0, 20)
    decide = st.tuples(st.sampled_from([1, 2, 100]), st.sampled_from([0.0, 0.5, 1.0, 3.0, 3.0, -5.0]))
    return st.one_of(
        tasks().map(lambda task: Step("task_ready", (task,))),
        tasks().map(lambda task: Step("task_ready", (task,))),
        st.lists(tasks(), min_size=5, max_size=12).map(lambda many: Step("many_ready", tuple(many))),
        offers().map(lambda offer: Step("worker_offers", (offer,))),
        offers().map(lambda offer: Step("worker_offers", (offer,))),
        decide.map(lambda arguments: Step("decide", arguments)),
        decide.map(lambda arguments: Step("decide", arguments)),
        nth.map(lambda number: Step("finish", (number,))),
        nth.map(lambda number: Step("finish", (number,))),
        nth.map(lambda number: Step("confirm", (number,))),
        nth.map(lambda number: Step("refuse", (number,))),
        name.map(lambda task: Step("task_gone", (task,))),
        st.sampled_from(WORKERS).map(lambda worker: Step("worker_gone", (worker,))),
        st.tuples(tasks(), st.lists(st.sampled_from([*WORKERS, "w9"]), min_size=1, max_size=2), st.integers(0, 1)).map(
            lambda adopted: Step("adopt", adopted)
        ),
        st.tuples(st.sampled_from(PROJECTS), st.sampled_from([0.5, 1.0, 4.0])).map(
            lambda weight: Step("project", weight)
        ),
        st.dictionaries(st.sampled_from(["matlab", "spice"]), st.integers(0, 3)).map(
            lambda totals: Step("licences", (totals,))
        ),
    )


def long_story(seed: int, length: int) -> Iterator[Step]:
    """Steps of a farm that is always busy: most of what Hypothesis tells is too short for reservations."""
    chance = Random(seed)
    yield from (Step("worker_offers", (replace(chance.choice(OFFERS), worker=worker),)) for worker in WORKERS)
    yield Step("licences", ({"matlab": 2, "spice": 1},))
    for _ in range(length):
        dice = chance.random()
        if dice < 0.35:
            yield Step("task_ready", (_some_task(chance),))
        elif dice < 0.65:
            yield Step("finish", (chance.randrange(20),))
        elif dice < 0.9:
            yield Step("decide", (chance.choice([1, 2, 100, 100]), chance.choice([0.0, 0.3, 1.0, 1.5])))
        elif dice < 0.93:
            yield Step("refuse", (chance.randrange(20),))
        elif dice < 0.95:
            yield Step("confirm", (chance.randrange(20),))
        elif dice < 0.97:
            cached = frozenset(chance.sample(DIGESTS, 1))
            offer = replace(chance.choice(OFFERS), worker=chance.choice(WORKERS), cached=cached)
            yield Step("worker_offers", (replace(offer, accepting=chance.random() < 0.8),))
        elif dice < 0.98:
            yield Step("worker_gone", (chance.choice(WORKERS),))
        elif dice < 0.985:
            yield Step("project", (chance.choice(PROJECTS), chance.choice([0.5, 1.0, 4.0])))
        elif dice < 0.99:
            yield Step("licences", ({"matlab": chance.randrange(4), "spice": chance.randrange(3)},))
        else:
            yield Step("adopt", (_some_task(chance), [chance.choice([*WORKERS, "w9"])], chance.randrange(2)))


def _some_task(chance: Random) -> ReadyTask:
    return ReadyTask(
        task=f"t{chance.randrange(40)}",
        project=chance.choice(PROJECTS),
        plan=chance.choice(["", "p1", "p2"]),
        priority=chance.randrange(3),
        submitted=float(chance.randrange(60)),
        sequence=chance.randrange(9),
        needs=chance.choice(NEEDS[:-1]),
        gang=chance.choice([1, 1, 1, 1, 1, 1, 2, 3]),
        expected=chance.choice([None, 1.0, 1.0, 3.0, 9.0]),
        speeds=chance.choice(SPEEDS),
        excluded=tuple(chance.sample(WORKERS, chance.choice([0, 0, 0, 1, 2]))),
        limits=chance.choice([{}, {}, {}, {}, {}, {"matlab": 1}, {"matlab": 2}, {"matlab": 1, "spice": 1}]),
        near=tuple(chance.sample(DIGESTS, chance.choice([0, 0, 1, 2]))),
    )


def perform(scheduler: Any, step: Step, now: float) -> tuple[Any, float]:
    """(what it answers, the time after it). Placed tasks are counted in the order in which they were placed."""
    placed = list(scheduler.placed)
    match step.what, step.arguments:
        case "decide", (at_most, later):
            return scheduler.decide(at_most, now + later), now + later
        case "finish", (number,) if placed:
            scheduler.task_gone(placed[number % len(placed)])
        case "refuse", (number,) if placed:
            scheduler.placement_refused(placed[number % len(placed)])
        case "confirm", (number,) if placed:
            task = placed[number % len(placed)]
            known = scheduler.placed[task]
            # What the record shows of our own decision changes nothing, so the task's words do not matter.
            scheduler.task_placed(ReadyTask(task=task), known.workers, known.alternative)
        case "adopt", (task, workers, alternative):
            scheduler.task_placed(task, workers, alternative)
        case "many_ready", many:
            for task in many:
                scheduler.task_ready(task)
        case (("finish" | "refuse" | "confirm"), _):
            pass
        case door, arguments:
            getattr(scheduler, door)(*arguments)
    return None, now


def check_invariants(scheduler: Any) -> None:
    """What the scheduler keeps agrees with itself: sums, buckets, queues."""
    pool = scheduler.pool
    for worker in pool.workers.values():
        if worker.cls is None:
            assert worker.running
            assert worker.reservation is None
            continue
        taken = [sum(amounts) for amounts in zip(*(t.vector for t in worker.running.values()), strict=True)]
        room = tuple(has - used for has, used in zip(worker.cls.key.total, taken or [0] * 9, strict=False))
        assert worker.room == room
        stands = [number for cls in pool.classes.values() for bucket in cls.room.buckets.values() for number in bucket]
        assert stands.count(worker.number) == (worker.accepting and worker.reservation is None)
    for name, placed in scheduler.placed.items():
        assert name not in scheduler.backlog.waiting
        assert all(name in pool.workers[worker].running for worker in placed.workers)
    for reservation in scheduler.reservations:
        assert all(worker.reservation is reservation and worker.accepting for worker in reservation.workers)
        assert sum(shape.reservation is reservation for shape in scheduler.backlog.shapes.values()) == 1
    for project in scheduler.backlog.projects.values():
        assert project.ranks == sorted(project.ranks)
        assert project.ranks == [queue.first().rank for queue in project.listing]
        assert all(amount >= 0 for amount in project.held.values())
    assert all(units >= 0 for units in scheduler.available.held.values())
