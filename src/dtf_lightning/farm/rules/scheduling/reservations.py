"""Who is overtaken, and which workers are held free for them.

Rules that this file guards:
- Workers are reserved for a shape, not for a task: any task of it may take them. By task, two of one shape would each
  hold half of what the other one needs.
- A mere backlog reserves nothing. A queue has been overtaken if, since it last started a task, others started on the
  workers that it waits for although it was its turn: tasks of its own project that come later, or tasks of projects that
  have a larger share by now.
- Nothing starves: a queue whose project has the larger share all the time is helped, too, but later, and only one such
  queue at a time.
- All workers of a gang are reserved together, so that no two gangs wait for each other.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

from dtf_lightning.farm.rules.scheduling.backlog import listed_rank
from dtf_lightning.farm.rules.scheduling.projects import Project, Queue, Rank
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.shapes import Shape
from dtf_lightning.farm.rules.scheduling.worker_classes import Reservation, Worker, WorkerClass


class Starts:
    """What was started on workers of one class since the last look."""

    def __init__(self, recent: Iterable[tuple[str, Rank]], projects: Mapping[str, Project]) -> None:
        self._by_project: dict[str, list[Rank]] = {}
        for project, rank in recent:
            self._by_project.setdefault(project, []).append(rank)
        for ranks in self._by_project.values():
            ranks.sort()
        self._all = sorted(rank for ranks in self._by_project.values() for rank in ranks)
        shares = sorted((projects[name].share, len(ranks)) for name, ranks in self._by_project.items())
        self._shares = [share for share, _ in shares]
        self._until = [0, *accumulate(number for _, number in shares)]

    def later(self, rank: Rank) -> int:
        """Of a later rank, whosoever they are."""
        return len(self._all) - bisect_right(self._all, rank)

    def out_of_turn(self, project: Project, rank: Rank) -> int:
        """Before a task of this rank whose turn it was."""
        own = self._by_project.get(project.name, [])
        by_larger_shares = self._until[-1] - self._until[bisect_right(self._shares, project.share)]
        return len(own) - bisect_right(own, rank) + by_larger_shares


def note_starts(
    queues: Iterable[Queue], classes: Iterable[WorkerClass], projects: Mapping[str, Project], now: float
) -> None:
    """Count for each queue that has room for nothing what was started before it, and begin to count anew."""
    starts = {}
    for cls in classes:
        if cls.recent:
            starts[cls.serial] = Starts(cls.recent, projects)
            cls.recent = []
    for queue in queues:
        if queue.started:
            queue.started = False
            continue
        for serial in queue.shape.by_class if starts else ():
            if serial in starts:
                rank = listed_rank(queue)
                queue.overtaken += starts[serial].out_of_turn(queue.project, rank)
                queue.passed += starts[serial].later(rank)
        if queue.overtaken or queue.passed:
            queue.since = now if queue.since is None else min(now, queue.since)


def deserving(
    queues: Iterable[Queue], reservations: list[Reservation], settings: SchedulerSettings, now: float
) -> Iterator[tuple[Queue, bool]]:
    """(queue, whether it starved) of those for which workers are to be held free, in the order of their ranks."""
    reservations = [reservation for reservation in reservations if not reservation.by_people]
    if len(reservations) >= settings.max_reservations:
        return
    for queue in sorted(queues, key=listed_rank):
        if queue.shape.reservation is not None or queue.since is None:
            continue
        waited = now - queue.since
        if queue.overtaken >= settings.overtaken and waited >= settings.reserve_after:
            yield queue, False
        elif (
            queue.passed >= settings.overtaken
            and waited >= settings.starve_after
            and not any(reservation.late for reservation in reservations)
        ):
            yield queue, True


def plan_reservation(shape: Shape, now: float, *, late: bool) -> Reservation | None:
    """The workers that are expected to have room first, for the alternative that can start first; `None`: too few."""
    best: tuple[float, list[Worker]] | None = None
    for alternative in range(len(shape.key.demands)):
        able = [
            (worker, option.wanted)
            for option in shape.options
            if option.alternative == alternative
            for worker in option.cls.workers.values()
            if worker.accepting and worker.reservation is None and worker.name not in shape.barred
        ]
        if len(able) >= shape.key.gang:
            ready = [(*worker.free_at(wanted, now), worker.number, worker) for worker, wanted in able]
            first = heapq.nsmallest(shape.key.gang, ready, key=lambda choice: choice[:3])
            if best is None or first[-1][0] < best[0]:
                best = first[-1][0], [worker for *_, worker in first]
    if best is None:
        return None
    return Reservation(shape.serial, tuple(best[1]), best[0], late)
