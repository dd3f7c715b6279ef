"""Farm workers as the scheduler sees them: alike ones are one class, in it those with equal free amounts one bucket.

Rules that this file guards:
- Amounts are vectors in the order of their class' resources, scarce ones first: so the smallest bucket that fits is the
  one that keeps most of what is scarce.
- A worker is in its class' `room` if it takes new tasks and is not reserved, and in `fresh` if besides it has more room
  than when the sleeping shapes last looked, and some of them fits there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import add, ge, sub
from typing import NamedTuple

from dtf_lightning.farm.rules.needs import CPU, THOUSANDTHS, Need, asked, offered, scarce_first
from dtf_lightning.farm.rules.scheduling.door import WorkerOffer
from dtf_lightning.farm.rules.watching.devices import device_class

Vector = tuple[int, ...]
"""Thousandths of each of a class' resources."""


def fits(room: Vector, wanted: Vector) -> bool:
    """Whether there is that much of everything."""
    return all(map(ge, room, wanted))


def plus(left: Vector, right: Vector) -> Vector:
    """Of two vectors of one class."""
    return tuple(map(add, left, right))


def minus(left: Vector, right: Vector) -> Vector:
    """Of two vectors of one class."""
    return tuple(map(sub, left, right))


class Demand(NamedTuple):
    """A need as a key: equal for needs that ask for the same."""

    amounts: tuple[tuple[str, int], ...]
    labels: tuple[str, ...]
    exclusive: bool

    @classmethod
    def of(cls, need: Need) -> Demand:
        """Thousandths, sorted; what is not asked for is left out, and who asks for nothing gets one cpu."""
        return _demand(tuple(need.amounts.items()), need.labels, need.exclusive)


@lru_cache(maxsize=4096)
def _demand(given: tuple[tuple[str, float], ...], labels: tuple[str, ...], exclusive: bool) -> Demand:
    """Remembered, because thousands of tasks ask for the same."""
    amounts = [(name, wanted) for name, amount in given if (wanted := asked(amount))]
    return Demand(tuple(sorted(amounts)) or ((CPU, THOUSANDTHS),), tuple(sorted(set(labels))), exclusive)


class ClassKey(NamedTuple):
    """What makes workers alike."""

    resources: tuple[str, ...]
    total: Vector
    labels: tuple[str, ...]
    cost: float
    speed: float

    @classmethod
    def of(cls, offer: WorkerOffer) -> ClassKey:
        """The class of a worker; devices of which it has none are left out."""
        amounts = {name: has for name, amount in offer.devices.items() if (has := offered(amount))}
        resources = tuple(sorted(amounts, key=scarce_first))
        labels = tuple(sorted(set(offer.labels)))
        speed = offer.speed if offer.speed > 0 else 1.0
        return cls(resources, tuple(amounts[name] for name in resources), labels, offer.cost, speed)


class Taken(NamedTuple):
    """What a task has on one worker."""

    vector: Vector
    demand: Demand
    expected: float | None
    """Seconds on a worker of speed 1."""
    speeds: Mapping[str, float]
    """Device class -> the speed that this task has there."""
    began: float | None
    """`None`: before the next decision, nobody said when."""


BY_PEOPLE = 0
"""The shape of reservations that people have made: no shape has this serial number."""


@dataclass(eq=False, slots=True)
class Reservation:
    """Workers that are held free for a shape's next task."""

    shape: int
    workers: tuple[Worker, ...]
    ready: float
    """When all of them are expected to have room; infinite: unknown."""
    late: bool
    """Made because the queue starved, not because it was overtaken in its turn."""
    project: str = ""
    """By people: whose tasks may start there at once; "": nobody's, or it is for a shape."""

    @property
    def by_people(self) -> bool:
        """Whether it is for no shape."""
        return self.shape == BY_PEOPLE


class Worker:
    """One farm worker; without a class while it is only known from what runs on it."""

    __slots__ = ("accepting", "cached", "cls", "fresh", "name", "number", "reservation", "room", "running", "turn")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.cls: WorkerClass | None = None
        self.room: Vector = ()
        self.running: dict[str, Taken] = {}
        self.accepting = False
        self.cached: frozenset[str] = frozenset()
        self.reservation: Reservation | None = None
        self.fresh = False
        self.turn = 0
        """The number of the last placement here."""

    def free_at(self, wanted: Vector, now: float) -> tuple[float, int]:
        """(when there is that much room, how many tasks end before): infinite if that is unknown."""
        assert self.cls is not None
        if fits(self.room, wanted):
            return now, 0
        room, at, ended = self.room, now, 0
        for end, _, taken in sorted((self.end_of(task), task, taken) for task, taken in self.running.items()):
            if fits(room, wanted):
                break
            room, at, ended = plus(room, taken.vector), max(at, end), ended + 1
        return at, ended

    def end_of(self, task: str) -> float:
        """When a task that runs here is expected to end; infinite: unknown."""
        taken = self.running[task]
        if taken.expected is None or taken.began is None or self.cls is None:
            return float("inf")
        return taken.began + taken.expected / self.cls.speed_of(taken.speeds)


class Rooms:
    """Workers of a class by their free amounts."""

    __slots__ = ("buckets", "order")

    def __init__(self) -> None:
        self.buckets: dict[Vector, list[int]] = {}
        """Free amounts -> numbers of workers, sorted."""
        self.order: list[Vector] = []

    def add(self, room: Vector, number: int) -> None:
        bucket = self.buckets.get(room)
        if bucket is None:
            self.buckets[room] = [number]
            insort(self.order, room)
        else:
            insort(bucket, number)

    def remove(self, room: Vector, number: int) -> None:
        bucket = self.buckets[room]
        del bucket[bisect_left(bucket, number)]
        if not bucket:
            del self.buckets[room]
            del self.order[bisect_left(self.order, room)]

    def fitting(self, wanted: Vector) -> Iterator[list[int]]:
        """Numbers of the workers with that much room, bucket by bucket, best fit first."""
        order = self.order
        for index in range(bisect_left(order, wanted[:1]), len(order)):
            if all(map(ge, order[index], wanted)):
                yield self.buckets[order[index]]


class Skyline:
    """Tells for some vectors whether any of them fits into a room: only the smallest ones matter."""

    __slots__ = ("_lowest", "_stale", "_vectors")

    def __init__(self) -> None:
        self._vectors: dict[int, tuple[Vector, ...]] = {}
        self._lowest: list[Vector] = []
        self._stale = False

    def add(self, owner: int, vectors: tuple[Vector, ...]) -> None:
        self._vectors[owner] = vectors
        if not self._stale:
            self._take(vectors)

    def remove(self, owner: int) -> None:
        vectors = self._vectors.pop(owner, ())
        self._stale = self._stale or any(vector in self._lowest for vector in vectors)

    def any_fits(self, room: Vector) -> bool:
        if self._stale:
            self._lowest, self._stale = [], False
            for vectors in self._vectors.values():
                self._take(vectors)
        for vector in self._lowest:  # noqa: SIM110 - twice as fast as `any`, and asked for every task that ends or starts
            if all(map(ge, room, vector)):
                return True
        return False

    def _take(self, vectors: Iterable[Vector]) -> None:
        for vector in vectors:
            if not any(fits(vector, low) for low in self._lowest):
                self._lowest = [low for low in self._lowest if not fits(low, vector)]
                self._lowest.append(vector)


class WorkerClass:
    """Workers with the same amounts, labels, cost and speed."""

    __slots__ = ("accepting", "device", "fresh", "key", "labels", "recent", "room", "serial", "skyline", "workers")

    def __init__(self, key: ClassKey, serial: int) -> None:
        self.key = key
        self.serial = serial
        self.labels = frozenset(key.labels)
        self.device = device_class(dict(zip(key.resources, key.total, strict=True)), key.labels)
        self.workers: dict[int, Worker] = {}
        self.accepting = 0
        self.room = Rooms()
        self.fresh = Rooms()
        self.skyline = Skyline()
        """What the sleeping shapes want here."""
        self.recent: list[tuple[str, tuple[float, float, int, str]]] = []
        """(project, rank) of what was started here since the last look for queues that were overtaken."""

    def speed_of(self, speeds: Mapping[str, float]) -> float:
        """How many times as fast a task is here as it is expected to be: its own speed here, or else the workers'."""
        return speeds.get(self.device, self.key.speed) if speeds else self.key.speed

    def wanted(self, demand: Demand) -> Vector | None:
        """What a task would take of a worker here; `None`: it can never run here."""
        if not self.labels.issuperset(demand.labels):
            return None
        amounts = dict(demand.amounts)
        vector = tuple(amounts.pop(name, 0) for name in self.key.resources)
        if amounts or not fits(self.key.total, vector):
            return None
        return self.key.total if demand.exclusive else vector

    def taken(self, demand: Demand) -> Vector:
        """What a task that was placed here holds, even if it should never have been."""
        amounts = dict(demand.amounts)
        return self.key.total if demand.exclusive else tuple([amounts.get(name, 0) for name in self.key.resources])

    def load(self, worker: Worker) -> float:
        """The largest part of a resource that is taken: 0 to 1."""
        return max(((has - free) / has for has, free in zip(self.key.total, worker.room, strict=True)), default=0.0)

    def workers_fitting(self, rooms: Rooms, wanted: Vector, barred: Container[str]) -> Iterator[Worker]:
        """Those in `rooms` with that much room, best fit first, without the barred ones."""
        for bucket in rooms.fitting(wanted):
            for number in bucket:
                worker = self.workers[number]
                if worker.name not in barred:
                    yield worker

    def best_fit(self, rooms: Rooms, wanted: Vector, barred: Container[str]) -> Worker | None:
        """The first of them; written out, because every decision asks it some ten times."""
        order = rooms.order
        for index in range(bisect_left(order, wanted[:1]), len(order)):
            room = order[index]
            if all(map(ge, room, wanted)):
                for number in rooms.buckets[room]:
                    worker = self.workers[number]
                    if worker.name not in barred:
                        return worker
        return None
