"""The farm's scheduler: it is told what happened, and answers which task starts on which workers.

Rules that this file guards:
- Only what the farm's record shows changes the state. A decision is a promise: its amounts are taken until the record
  shows the placement, or the task's end, or the shell says that its write was refused.
- The next task is the first of the project with the smallest share (then the better rank, then the name) that has room
  somewhere: its queues are asked by rank. This goes on until nobody has room.
- The work is proportional to what has changed, never to tasks times workers. A shape that found no room sleeps: from
  then on it looks only at workers that got room since, and not at all if none of its kind would fit there.
- No clock, no I/O, no chance: equal events give equal decisions.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.farm.rules.reserving.times import Held
from dtf_lightning.farm.rules.scheduling.backlog import Backlog, listed_rank
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, Seat, WorkerOffer
from dtf_lightning.farm.rules.scheduling.explanation import why_it_waits
from dtf_lightning.farm.rules.scheduling.licences import Licences
from dtf_lightning.farm.rules.scheduling.pool import WorkerPool
from dtf_lightning.farm.rules.scheduling.projects import Project, Queue, Rank, Task
from dtf_lightning.farm.rules.scheduling.reservations import deserving, note_starts, plan_reservation
from dtf_lightning.farm.rules.scheduling.search import Found, find_gang, find_reserved, find_unreserved, fresh_for_gang
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.shapes import Shape
from dtf_lightning.farm.rules.scheduling.strategies import FairShare, Strategy
from dtf_lightning.farm.rules.scheduling.worker_classes import BY_PEOPLE, Reservation, Worker, WorkerClass


@dataclass(slots=True)
class Placed:
    """A task that has its workers, or that they were promised to."""

    task: Task
    workers: tuple[str, ...]
    alternative: int
    amounts: tuple[tuple[str, int], ...]
    """What counts as held by its project: (resource, thousandths) of each worker."""
    promised: bool
    """The record does not show it yet."""


class ShapeScheduler:
    """A `door.Scheduler`: decides which tasks start where. Not thread-safe.

    Args:
        strategy: which worker is taken if several have room.
        settings: how waiting is weighed.
    """

    def __init__(self, strategy: Strategy | None = None, settings: SchedulerSettings | None = None) -> None:
        self.strategy: Strategy = FairShare() if strategy is None else strategy
        self.settings = SchedulerSettings() if settings is None else settings
        self.pool = WorkerPool()
        self.backlog = Backlog(self.settings.age)
        self.available = Licences()
        self.placed: dict[str, Placed] = {}
        self.reservations: list[Reservation] = []
        self._held: dict[str, Held] = {}
        """Worker that people have reserved -> how."""
        self._firsts_changed = False
        """Whether a queue has another first task since all of them found nothing."""
        self._told = False
        """Whether anything has happened since all of them found nothing."""
        self._unfinished = False
        """Whether somebody may still have room."""
        self._turns: list[tuple[float, Rank, str, Project]] = []
        """A heap: whose turn it is."""
        self._round = 0
        """Grows when there may be more room than before."""
        self._num_starts = 0
        self._last_look = float("-inf")

    # --- what has happened -------------------------------------------------------------------------------------------

    def task_ready(self, task: ReadyTask) -> None:
        """A task may start: a new one, one whose dependencies have ended, one that comes back after a failed attempt."""
        known = self.backlog.know(task)  # before the former one is forgotten: its plan may have no other task
        self._drop(task.task)
        self._wait(known)

    def task_placed(self, ready: ReadyTask, workers: Sequence[str], alternative: int) -> None:
        """The record shows a task on its workers: our own decision, or one of an earlier leader."""
        names = tuple(dict.fromkeys(workers))
        placed = self.placed.get(ready.task)
        if placed is not None and placed.workers == names and placed.alternative == alternative:
            placed.promised = False
            return
        known = self.backlog.know(ready)
        self._drop(ready.task)
        self._place(known, names, alternative, began=None)

    def task_gone(self, task: str) -> None:
        """A task is done, cancelled or unknown. Idempotent."""
        self._drop(task)

    def placement_refused(self, task: str) -> None:
        """Our write of a placement was refused: what was promised is free again, and the task waits. Idempotent."""
        placed = self.placed.get(task)
        if placed is not None and placed.promised:
            self._release(placed)
            self._wait(placed.task)

    def is_placed(self, task: str) -> bool:
        """Whether a task has its workers, or was promised some."""
        return task in self.placed

    def worker_offers(self, offer: WorkerOffer) -> None:
        """A farm worker is there, or offers something else than before, or takes no new tasks any more, or again."""
        new, gone, matters = self.pool.offer(offer)
        if gone is not None:
            self._unlink(gone)
        if new is not None:
            for shape in self.backlog.shapes.values():
                shape.link(new, self.strategy)
            self.pool.look_again(offer.worker)
        if matters:
            self._workers_changed(self.pool.workers[offer.worker])
        self._reserve_for_people(offer.worker)

    def worker_gone(self, worker: str) -> None:
        """A farm worker is gone. What was placed on it stays so until the record says what becomes of it. Idempotent."""
        known = self.pool.workers.get(worker)
        if known is not None and known.cls is not None:
            gone = self.pool.gone(worker)
            if gone is not None:
                self._unlink(gone)
            self._workers_changed(known)

    def hold(self, worker: str, held: Held | None) -> None:
        """People have reserved a worker, which need not be there yet; `None`: they have not any more. Idempotent."""
        known = self.pool.workers.get(worker)
        before = known.reservation if known is not None else None
        if before is not None and before.by_people and self._held.get(worker) != held:
            self._unreserve(before)
        if held is None:
            self._held.pop(worker, None)
            return
        self._held[worker] = held
        self._reserve_for_people(worker)

    def project(self, name: str, weight: float) -> None:
        """A project's weight: of twice the weight it gets twice the share. 1 if nothing is said.

        Raises `ValueError` for a weight that is not positive.
        """
        if not weight > 0:
            raise ValueError(f"the project {name!r} was given the weight {weight!r}; expected a number above 0")
        project = self.backlog.project(name)
        project.weight = weight
        project.update_share(self.pool.capacity)

    def licences(self, totals: Mapping[str, int]) -> None:
        """How many there are of each licence; of one that is not named there is none."""
        self.available.totals = dict(totals)
        self._told = True

    # --- decisions ---------------------------------------------------------------------------------------------------

    def decide(self, at_most: int, now: float) -> list[Placement]:
        """The next placements, the most urgent first; they are promised from now on.

        Args:
            at_most: how many; the rest is decided by the next call.
            now: seconds since the epoch.
        """
        self.pool.start_clocks(now)
        if abs(now - self._last_look) >= self.settings.look_every:  # a clock may be set back
            self._last_look = now
            self._look_for_overtaken(now)
        decided: list[Placement] = []
        if self._unfinished or self._something_is_new():
            self._unfinished = True
            self._begin_turns(now, more_room=True)
        while self._unfinished and len(decided) < at_most:
            found = self._next(now)
            if found is None:
                self._nobody_has_room()
            else:
                decided.append(self._start(*found, now))
                self._unfinished = self._something_is_new() or bool(self.backlog.limited)
        return decided

    def first_waiting(self, at_most: int) -> list[str]:
        """Tasks that only want a worker, in the order of their ranks: no licence is missing, and some worker could do them."""
        ranks: list[Rank] = []
        for shape in self.backlog.shapes.values():
            if shape.options and all(self.available.free(name) >= units for name, units in shape.key.limits):
                for queue in self.backlog.queues(shape):
                    ranks += heapq.nsmallest(at_most, (task.rank for task in queue.tasks.values()))
        return [rank[3] for rank in heapq.nsmallest(at_most, ranks)]

    def kind_of(self, task: str) -> int | None:
        """The shape of a waiting task: those that ask for the same have the same."""
        queue = self.backlog.waiting.get(task)
        return None if queue is None else queue.shape.serial

    def seats(self) -> dict[str, Seat]:
        """What is free of each worker, and what it has in all."""
        return {
            name: Seat(
                total=dict(zip(worker.cls.key.resources, worker.cls.key.total, strict=True)),
                free=dict(zip(worker.cls.key.resources, worker.room, strict=True)),
                labels=worker.cls.labels,
                accepting=worker.accepting,
                held_for=None if worker.reservation is None else worker.reservation.shape,
            )
            for name, worker in self.pool.workers.items()
            if worker.cls is not None
        }

    def explain(self, task: str, now: float) -> str:
        """One sentence on why a task does not run, or where it does."""
        placed = self.placed.get(task)
        if placed is not None:
            where = ", ".join(placed.workers)
            return f"is about to start on {where}" if placed.promised else f"was given to {where}"
        queue = self.backlog.waiting.get(task)
        if queue is None:
            return "is not among the tasks that may start"
        return why_it_waits(queue.tasks[task], self.backlog, self.pool, self.available, now)

    @property
    def num_waiting(self) -> int:
        """Tasks that are ready and not placed."""
        return len(self.backlog.waiting)

    @property
    def num_placed(self) -> int:
        """Tasks that run or were promised workers."""
        return len(self.placed)

    def _something_is_new(self) -> bool:
        return bool(
            self.backlog.awake
            or self.pool.got_room
            or (self._firsts_changed and self.reservations)
            or (self.backlog.limited and (self._told or self.reservations))
        )

    def _begin_turns(self, now: float, *, more_room: bool) -> None:
        """All projects are asked, from their first queues on."""
        self._round += more_room
        if self.backlog.limited:
            self._admit(now)
        self._turns = []
        for project in self.backlog.active.values():
            project.cursor = 0
            self._turns.append((project.share, project.ranks[0], project.name, project))
        heapq.heapify(self._turns)

    def _next(self, now: float) -> tuple[Queue, Found] | None:
        only = None if self.reservations else self.pool.only_fresh_room()
        while self._turns:
            project = self._turns[0][3]
            for index in range(project.cursor, len(project.listing)):
                queue = project.listing[index]
                shape = queue.shape
                if not shape.admitted or (shape.failed_in == self._round and not self.reservations):
                    continue
                if only is not None and shape.asleep and not shape.key.limits and not shape.fits_into(*only):
                    shape.failed_in = self._round
                    continue
                found = self._find(queue, now)
                if found is not None:
                    project.cursor = index
                    return queue, found
            heapq.heappop(self._turns)
        return None

    def _find(self, queue: Queue, now: float) -> Found | None:
        """Where a queue's first task could start."""
        shape, task = queue.shape, queue.listed_task()
        if shape.failed_in != self._round:
            found = self._find_unreserved(task, shape)
            if found is not None:
                return found
            shape.failed_in = self._round
        if self.reservations and shape.key.gang == 1:
            found = find_reserved(
                task, shape, self._reserved_workers(all_of_them=queue.changed or bool(shape.key.limits)), now
            )
            if found is not None:
                return found
        queue.changed = False
        return None

    def _find_unreserved(self, task: Task, shape: Shape) -> Found | None:
        only_fresh = shape.asleep and not shape.key.limits
        if shape.key.gang > 1:
            return find_gang(shape) if not only_fresh or fresh_for_gang(shape, self.pool) else None
        if only_fresh and not self.pool.fresh_classes:
            return None
        return find_unreserved(task, shape, self.pool, self.strategy, only_fresh=only_fresh)

    def _reserved_workers(self, *, all_of_them: bool) -> list[Worker]:
        """By their numbers. A task that did not fit into a reserved worker will not later, unless that gets room."""
        workers = self.pool.fresh_reserved.values()
        if all_of_them:
            return sorted((w for held in self.reservations for w in held.workers), key=_number)
        return sorted(workers, key=_number)

    def _admit(self, now: float) -> None:
        """Whose turn it is at the licences, of the shapes that have room."""
        shapes = [(self.backlog.first_queue(shape), shape) for shape in self.backlog.limited.values()]
        shapes.sort(key=lambda pair: listed_rank(pair[0]))
        able = [shape for queue, shape in shapes if self._find(queue, now) is not None]
        for _, shape in shapes:
            shape.admitted = False
        for shape, turn in zip(able, self.available.turns(shape.key.limits for shape in able), strict=True):
            shape.admitted = turn

    def _start(self, queue: Queue, found: Found, now: float) -> Placement:
        shape = queue.shape
        held_for_it = shape.reservation
        task, _, last = self.backlog.remove(queue.listed_task().name)
        self._firsts_changed = True
        queue.started, queue.overtaken, queue.passed = True, 0, 0
        if held_for_it is None:
            queue.since = None
        names = tuple(worker.name for worker in found.workers)
        noted = None
        for worker in found.workers:
            if worker.cls is not noted and worker.cls is not None:
                noted = worker.cls
                noted.recent.append((task.project, task.rank))
        self._place(task, names, found.alternative, began=now)
        if held_for_it is not None:
            self._unreserve(held_for_it)
        if last:
            self._drop_shape(shape)
        if held_for_it is not None or self.backlog.limited:
            self._begin_turns(now, more_room=held_for_it is not None)
        else:
            project = queue.project
            if project.ranks:
                heapq.heapreplace(self._turns, (project.share, project.ranks[0], project.name, project))
            else:
                heapq.heappop(self._turns)
        return Placement(task=task.name, workers=names, alternative=found.alternative)

    def _nobody_has_room(self) -> None:
        for shape in self.backlog.awake.values():
            shape.sleep()
        self.backlog.awake.clear()
        self.pool.all_seen()
        self._firsts_changed = self._told = self._unfinished = False

    # --- reservations ------------------------------------------------------------------------------------------------

    def _look_for_overtaken(self, now: float) -> None:
        queues = [
            queue
            for project in self.backlog.active.values()
            for queue in project.listing
            if all(self.available.free(name) >= units for name, units in queue.shape.key.limits)
        ]
        note_starts(queues, self.pool.classes.values(), self.backlog.projects, now)
        for queue, late in deserving(queues, self.reservations, self.settings, now):
            reservation = plan_reservation(queue.shape, now, late=late)
            if reservation is not None:
                self.pool.reserve(reservation)
                self.reservations.append(reservation)
                queue.shape.reservation = reservation
                for other in self.backlog.queues(queue.shape):
                    other.changed = self._firsts_changed = True
                break  # one a look: it has looked at every worker that could do

    def _reserve_for_people(self, name: str) -> None:
        """Where people have reserved this worker: whoever else it was held for waits for another one."""
        held, worker = self._held.get(name), self.pool.workers.get(name)
        if held is None or worker is None or worker.cls is None:
            return
        if worker.reservation is not None:
            if worker.reservation.by_people:
                return
            self._unreserve(worker.reservation)
        reservation = Reservation(BY_PEOPLE, (worker,), held.until, late=False, project=held.project)
        self.pool.reserve(reservation)
        self.reservations.append(reservation)

    def _unreserve(self, reservation: Reservation) -> None:
        for index, held in enumerate(self.reservations):
            if held is reservation:
                del self.reservations[index]
                break
        for shape in self.backlog.shapes.values():
            if shape.reservation is reservation:
                shape.reservation = None
        self.pool.unreserve(reservation)

    # --- tasks and workers -------------------------------------------------------------------------------------------

    def _wait(self, task: Task) -> None:
        new = self.backlog.add(task)
        self._firsts_changed = self._told = True
        if new is None:
            return
        for cls in self.pool.classes.values():
            new.link(cls, self.strategy)
        if new.key.excluded:
            new.update_barred(self.pool.workers)

    def _drop(self, name: str) -> None:
        """It neither waits nor is placed from now on."""
        self._told = True
        placed = self.placed.get(name)
        if placed is not None:
            self._release(placed)
            self.backlog.forget(placed.task)
        elif name in self.backlog.waiting:
            task, queue, last = self.backlog.remove(name)
            self.backlog.forget(task)
            self._firsts_changed = True
            if last:
                self._drop_shape(queue.shape)

    def _drop_shape(self, shape: Shape) -> None:
        """Its last task has gone."""
        shape.wake()
        if shape.reservation is not None:
            self._unreserve(shape.reservation)

    def _place(self, task: Task, names: tuple[str, ...], alternative: int, *, began: float | None) -> None:
        demands = task.key.demands
        demand = demands[alternative] if 0 <= alternative < len(demands) else demands[0]
        self._num_starts += 1
        amounts: tuple[tuple[str, int], ...] = ()
        for name in names:
            worker = self.pool.take(name, task, demand, began, self._num_starts)
            if demand.exclusive and worker.cls is not None:
                amounts += tuple(zip(worker.cls.key.resources, worker.cls.key.total, strict=True))
            else:
                amounts += demand.amounts
        self.backlog.project(task.project).hold(amounts, 1, self.pool.capacity)
        if task.key.limits:
            self.available.take(task.key.limits)
        self.placed[task.name] = Placed(task, names, alternative, amounts, promised=began is not None)

    def _release(self, placed: Placed) -> None:
        task = placed.task
        del self.placed[task.name]
        for name in placed.workers:
            self.pool.give_back(name, task.name)
        self.backlog.project(task.project).hold(placed.amounts, -1, self.pool.capacity)
        if task.key.limits:
            self.available.give_back(task.key.limits)

    def _workers_changed(self, worker: Worker) -> None:
        """Other workers than before can run something."""
        self._told = True
        if worker.reservation is not None:
            self._unreserve(worker.reservation)
        for shape in self.backlog.excluding.values():
            if shape.update_barred(self.pool.workers):
                shape.wake()
                self.backlog.awake[shape.serial] = shape
        self.backlog.update_shares(self.pool.capacity)

    def _unlink(self, cls: WorkerClass) -> None:
        for shape in self.backlog.shapes.values():
            shape.unlink(cls)


def _number(worker: Worker) -> int:
    return worker.number
