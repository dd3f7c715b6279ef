"""The workers of the farm: who is there, what is free, which of them got room since the sleeping shapes last looked."""

from __future__ import annotations

from dtf_lightning.farm.rules.scheduling.door import WorkerOffer
from dtf_lightning.farm.rules.scheduling.projects import Task
from dtf_lightning.farm.rules.scheduling.worker_classes import (
    ClassKey,
    Demand,
    Reservation,
    Taken,
    Vector,
    Worker,
    WorkerClass,
    minus,
    plus,
)


class WorkerPool:
    """All workers. A worker stays known, without a class, while something still counts as placed on it."""

    def __init__(self) -> None:
        self.workers: dict[str, Worker] = {}
        self.classes: dict[ClassKey, WorkerClass] = {}
        self.capacity: dict[str, int] = {}
        """Resource -> thousandths of all workers that are there."""
        self.fresh_classes: dict[int, WorkerClass] = {}
        """Serial -> class with fresh workers that are not reserved."""
        self.fresh_reserved: dict[int, Worker] = {}
        """Number -> reserved worker that got room."""
        self.serial = 0
        """Grows with every worker and class that is seen for the first time."""
        self._unstarted: list[tuple[Worker, str]] = []

    @property
    def got_room(self) -> bool:
        """Whether a sleeping shape could find something."""
        return bool(self.fresh_classes or self.fresh_reserved)

    def only_fresh_room(self) -> tuple[int, Vector] | None:
        """(serial of a class, room) if all fresh workers are alike, as after the end of a single task."""
        if len(self.fresh_classes) == 1 and not self.fresh_reserved:
            for serial, cls in self.fresh_classes.items():
                if len(cls.fresh.order) == 1:
                    return serial, cls.fresh.order[0]
        return None

    def offer(self, offer: WorkerOffer) -> tuple[WorkerClass | None, WorkerClass | None, bool]:
        """(class that is new, class that is gone, whether it matters who can run what)."""
        worker = self._worker(offer.worker)
        worker.cached = offer.cached
        key = ClassKey.of(offer)
        old = worker.cls
        if old is not None and old.key == key:
            if worker.accepting == offer.accepting:
                return None, None, False
            self._leave_rooms(worker)
            worker.accepting = offer.accepting
            old.accepting += 1 if offer.accepting else -1
            self._enter_rooms(worker, fresh=True)
            return None, None, True
        gone = self._leave_class(worker)
        new = None
        if key not in self.classes:
            self.serial += 1
            new = self.classes[key] = WorkerClass(key, self.serial)
        self._enter_class(worker, self.classes[key], offer.accepting)
        return new, gone, True

    def gone(self, name: str) -> WorkerClass | None:
        """A worker is gone; returns its class if that is gone with it."""
        worker = self.workers.get(name)
        if worker is None:
            return None
        gone = self._leave_class(worker)
        self._forget_if_idle(worker)
        return gone

    def take(self, name: str, task: Task, demand: Demand, began: float | None, turn: int) -> Worker:
        """A task has its amounts of a worker, which may be unknown yet."""
        worker = self._worker(name)
        vector = worker.cls.taken(demand) if worker.cls is not None else ()
        self._leave_rooms(worker)
        worker.running[task.name] = Taken(vector, demand, task.expected, task.speeds, began)
        worker.room = minus(worker.room, vector)
        worker.turn = turn
        self._enter_rooms(worker, fresh=worker.fresh)
        if began is None:
            self._unstarted.append((worker, task.name))
        return worker

    def give_back(self, name: str, task: str) -> None:
        """A task has ended on a worker."""
        worker = self.workers[name]
        self._leave_rooms(worker)
        worker.room = plus(worker.room, worker.running.pop(task).vector)
        self._enter_rooms(worker, fresh=True)
        self._forget_if_idle(worker)

    def look_again(self, name: str) -> None:
        """The shapes that sleep have changed: one of them may fit on this worker."""
        worker = self.workers[name]
        self._leave_rooms(worker)
        self._enter_rooms(worker, fresh=True)

    def start_clocks(self, now: float) -> None:
        """What was placed by others began now at the latest."""
        for worker, task in self._unstarted:
            taken = worker.running.get(task)
            if taken is not None and taken.began is None:
                worker.running[task] = taken._replace(began=now)
        self._unstarted.clear()

    def reserve(self, reservation: Reservation) -> None:
        """Only the shape that it is for, and what ends in time, starts on these workers."""
        for worker in reservation.workers:
            self._leave_rooms(worker)
            worker.reservation = reservation
            self._enter_rooms(worker, fresh=worker.fresh)

    def unreserve(self, reservation: Reservation) -> None:
        """They are anybody's again."""
        for worker in reservation.workers:
            if worker.reservation is reservation:
                self._leave_rooms(worker)
                worker.reservation = None
                self._enter_rooms(worker, fresh=True)

    def all_seen(self) -> None:
        """No sleeping shape fits anywhere."""
        for cls in self.fresh_classes.values():
            for number in [number for bucket in cls.fresh.buckets.values() for number in bucket]:
                worker = cls.workers[number]
                cls.fresh.remove(worker.room, number)
                worker.fresh = False
        self.fresh_classes.clear()
        for worker in self.fresh_reserved.values():
            worker.fresh = False
        self.fresh_reserved.clear()

    # --- where a worker stands ---------------------------------------------------------------------------------------

    def _worker(self, name: str) -> Worker:
        worker = self.workers.get(name)
        if worker is None:
            self.serial += 1
            worker = self.workers[name] = Worker(name, self.serial)
        return worker

    def _forget_if_idle(self, worker: Worker) -> None:
        if worker.cls is None and not worker.running:
            del self.workers[worker.name]

    def _enter_class(self, worker: Worker, cls: WorkerClass, accepting: bool) -> None:
        room: Vector = cls.key.total
        for task, taken in worker.running.items():
            vector = cls.taken(taken.demand)
            worker.running[task] = taken._replace(vector=vector)
            room = minus(room, vector)
        worker.cls, worker.room, worker.accepting = cls, room, accepting
        cls.workers[worker.number] = worker
        cls.accepting += accepting
        for name, amount in zip(cls.key.resources, cls.key.total, strict=True):
            self.capacity[name] = self.capacity.get(name, 0) + amount
        self._enter_rooms(worker, fresh=True)

    def _leave_class(self, worker: Worker) -> WorkerClass | None:
        cls = worker.cls
        if cls is None:
            return None
        self._leave_rooms(worker)
        worker.cls, worker.room = None, ()
        for task, taken in worker.running.items():
            worker.running[task] = taken._replace(vector=())
        del cls.workers[worker.number]
        cls.accepting -= worker.accepting
        worker.accepting = False
        for name, amount in zip(cls.key.resources, cls.key.total, strict=True):
            self.capacity[name] -= amount
        if cls.workers:
            return None
        del self.classes[cls.key]
        return cls

    def _leave_rooms(self, worker: Worker) -> None:
        cls = worker.cls
        if cls is None or not worker.accepting:
            return
        if worker.reservation is not None:
            self.fresh_reserved.pop(worker.number, None)
            return
        cls.room.remove(worker.room, worker.number)
        if worker.fresh:
            cls.fresh.remove(worker.room, worker.number)
            if not cls.fresh.order:
                del self.fresh_classes[cls.serial]

    def _enter_rooms(self, worker: Worker, *, fresh: bool) -> None:
        cls = worker.cls
        worker.fresh = False
        if cls is None or not worker.accepting:
            return
        worker.fresh = fresh and cls.skyline.any_fits(worker.room)
        if worker.reservation is not None:
            if worker.fresh:
                self.fresh_reserved[worker.number] = worker
            return
        cls.room.add(worker.room, worker.number)
        if worker.fresh:
            cls.fresh.add(worker.room, worker.number)
            self.fresh_classes[cls.serial] = cls
