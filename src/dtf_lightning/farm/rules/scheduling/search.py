"""Where the first task of a queue could start now.

Rules that this file guards:
- A task of whose kind history knows how fast it is where is looked for at these speeds, if the strategy goes by speed.
- Workers that nobody has reserved come first, in the strategy's order; then those that are held for this very shape;
  then those that are held for others, if the task is expected to end before they need them (backfill). It is never
  tried beside an unknown duration, the task's or that of what is waited for.
- A gang is placed at once or not at all, for one alternative, and where it can be on workers of one class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import NamedTuple

from dtf_lightning.farm.rules.scheduling.pool import WorkerPool
from dtf_lightning.farm.rules.scheduling.projects import Task
from dtf_lightning.farm.rules.scheduling.shapes import Option, Shape
from dtf_lightning.farm.rules.scheduling.strategies import Candidate, Looks, Strategy
from dtf_lightning.farm.rules.scheduling.worker_classes import Reservation, Worker, WorkerClass, fits

FEW = 8
"""Options that are looked at one by one, rather than chosen from by what is fresh."""


class Found(NamedTuple):
    """Where a task can start."""

    workers: tuple[Worker, ...]
    alternative: int


def find_unreserved(
    task: Task, shape: Shape, pool: WorkerPool, strategy: Strategy, *, only_fresh: bool
) -> Found | None:
    """A worker for a single task, of those that nobody has reserved."""
    options = _options_with_fresh(shape, pool) if only_fresh else shape.options
    if task.speeds and len(options) > 1 and getattr(strategy, "by_speed", False):
        options = _by_own_speed(task, options, strategy)
    if strategy.looks is Looks.ALWAYS or task.near:
        for _, group in groupby(options, key=_group):
            found = _best_worker(task, shape, group, strategy, only_fresh)
            if found is not None:
                return found
        return None
    for option in options:
        rooms = option.cls.fresh if only_fresh else option.cls.room
        if rooms.order:
            worker = option.cls.best_fit(rooms, option.wanted, shape.barred)
            if worker is not None:
                return Found((worker,), option.alternative)
    return None


def _options_with_fresh(shape: Shape, pool: WorkerPool) -> list[Option]:
    """In the order of their use; usually there are one or two fresh workers among thousands."""
    fresh = pool.fresh_classes
    if len(fresh) == 1:
        for serial in fresh:
            return shape.by_class.get(serial, [])
    if len(fresh) > len(shape.by_class) or len(shape.options) <= FEW:
        return shape.options
    return sorted((option for serial in fresh for option in shape.by_class.get(serial, ())), key=_order)


def _by_own_speed(task: Task, options: list[Option], strategy: Strategy) -> list[Option]:
    """The options in the order that the strategy gives them at the speeds of this very task."""
    own = (
        one._replace(group=strategy.class_order(one.alternative, one.cost, one.cls.speed_of(task.speeds)))
        for one in options
    )
    return sorted(own, key=_order)


def _group(option: Option) -> tuple[float, ...]:
    return option.group


def _order(option: Option) -> tuple[object, ...]:
    return option[:4]


def _best_worker(
    task: Task, shape: Shape, group: Iterable[Option], strategy: Strategy, only_fresh: bool
) -> Found | None:
    best: tuple[float, ...] | None = None
    found = None
    near = frozenset(task.near)
    for option in group:
        cls = option.cls
        for worker in cls.workers_fitting(cls.fresh if only_fresh else cls.room, option.wanted, shape.barred):
            held = len(near & worker.cached) if near else 0
            order = strategy.worker_order(
                Candidate(
                    worker.name, option.alternative, cls.key.cost, cls.key.speed, cls.load(worker), held, worker.turn
                )
            )
            if best is None or order < best:
                best, found = order, Found((worker,), option.alternative)
    return found


def find_reserved(task: Task, shape: Shape, workers: Iterable[Worker], now: float) -> Found | None:
    """A worker for a single task, of those that are reserved: its own first, then the first in which it ends in time."""
    found = None
    for worker in workers:
        option = _fitting_option(shape, worker)
        if option is None or worker.reservation is None:
            continue
        if worker.reservation is shape.reservation or worker.reservation.project == task.project:
            return Found((worker,), option.alternative)
        if found is None and ends_in_time(task, worker.reservation, option.cls, now):
            found = Found((worker,), option.alternative)
    return found


def ends_in_time(task: Task, reservation: Reservation, cls: WorkerClass, now: float) -> bool:
    """Whether a task that starts now is expected to end before a reserved worker is needed."""
    return task.expected is not None and now + task.expected / cls.speed_of(task.speeds) <= reservation.ready < float(
        "inf"
    )


def _fitting_option(shape: Shape, worker: Worker) -> Option | None:
    if worker.cls is None or worker.name in shape.barred:
        return None
    for option in shape.by_class.get(worker.cls.serial, ()):
        if fits(worker.room, option.wanted):
            return option
    return None


def find_gang(shape: Shape) -> Found | None:
    """Workers for a gang, among them those that are reserved for it."""
    size = shape.key.gang
    for alternative in range(len(shape.key.demands)):
        options = [option for option in shape.options if option.alternative == alternative]
        together: list[Worker] = []
        for option in options:
            here = list(islice(_gang_workers(shape, option), size))
            if len(here) == size:
                return Found(tuple(here), alternative)
            together += here
        if len(together) >= size:
            return Found(tuple(together[:size]), alternative)
    return None


def _gang_workers(shape: Shape, option: Option) -> Iterator[Worker]:
    """Those of one class with room: reserved ones of the gang's own, then the best fit."""
    for worker in shape.reservation.workers if shape.reservation is not None else ():
        if worker.cls is option.cls and worker.name not in shape.barred and fits(worker.room, option.wanted):
            yield worker
    yield from option.cls.workers_fitting(option.cls.room, option.wanted, shape.barred)


def fresh_for_gang(shape: Shape, pool: WorkerPool) -> bool:
    """Whether a worker got room in which one of the gang fits: nothing else can bring a sleeping gang together."""
    if any(_fitting_option(shape, worker) for worker in pool.fresh_reserved.values()):
        return True
    return any(
        option.cls.best_fit(option.cls.fresh, option.wanted, shape.barred) is not None
        for serial in pool.fresh_classes
        for option in shape.by_class.get(serial, ())
    )
