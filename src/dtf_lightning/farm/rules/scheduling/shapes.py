"""Tasks that ask for the same are one shape: what one of them finds, each of them finds.

Rules that this file guards:
- A shape's options are the worker classes that could ever run it, in the order in which they are looked at.
- Excluded workers are barred only while enough others could run it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from typing import NamedTuple

from dtf_lightning.farm.rules.needs import DEFAULT_NEED
from dtf_lightning.farm.rules.scheduling.door import ReadyTask
from dtf_lightning.farm.rules.scheduling.strategies import Strategy
from dtf_lightning.farm.rules.scheduling.worker_classes import (
    ClassKey,
    Demand,
    Reservation,
    Vector,
    Worker,
    WorkerClass,
    fits,
)


class ShapeKey(NamedTuple):
    """What tasks of one shape have in common."""

    demands: tuple[Demand, ...]
    gang: int
    excluded: tuple[str, ...]
    limits: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, task: ReadyTask) -> ShapeKey:
        """The shape of a task."""
        return cls(
            tuple(Demand.of(need) for need in task.needs or (DEFAULT_NEED,)),
            max(1, task.gang),
            tuple(sorted(set(task.excluded))) if task.excluded else (),
            tuple(sorted((name, units) for name, units in task.limits.items() if units > 0)) if task.limits else (),
        )


class Option(NamedTuple):
    """A class that could run a shape, and what it would take there. Options sort in the order of their use."""

    group: tuple[float, ...]
    """What the strategy says of the class: options of one group are looked at together."""
    alternative: int
    cost: float
    key: ClassKey
    cls: WorkerClass
    wanted: Vector


class Shape:
    """One shape that has tasks waiting."""

    __slots__ = (
        "admitted",
        "asleep",
        "barred",
        "by_class",
        "failed_in",
        "key",
        "options",
        "queues",
        "reservation",
        "serial",
    )

    def __init__(self, key: ShapeKey, serial: int) -> None:
        self.key = key
        self.serial = serial
        self.options: list[Option] = []
        self.by_class: dict[int, list[Option]] = {}
        self.barred: frozenset[str] = frozenset(key.excluded)
        self.queues: dict[str, None] = {}
        """Projects that have tasks of it waiting."""
        self.asleep = False
        """Nothing that is not fresh has room for it."""
        self.failed_in = -1
        """The round in which it found nothing."""
        self.admitted = not key.limits
        """Whether it is its turn to take the licences that it needs."""
        self.reservation: Reservation | None = None

    def link(self, cls: WorkerClass, strategy: Strategy) -> None:
        """A class is there; nothing happens if it can never run this shape."""
        found = []
        for alternative, demand in enumerate(self.key.demands):
            wanted = cls.wanted(demand)
            if wanted is not None:
                group = strategy.class_order(alternative, cls.key.cost, cls.key.speed)
                found.append(Option(group, alternative, cls.key.cost, cls.key, cls, wanted))
        if not found:
            return
        for option in found:
            insort(self.options, option, key=_order)
        self.by_class[cls.serial] = sorted(found, key=_order)
        if self.asleep:
            cls.skyline.add(self.serial, tuple(option.wanted for option in found))

    def unlink(self, cls: WorkerClass) -> None:
        """A class is gone."""
        if self.by_class.pop(cls.serial, None) is not None:
            self.options = [option for option in self.options if option.cls is not cls]

    def sleep(self) -> None:
        """From now on only workers that get room are looked at."""
        self.asleep = True
        for options in self.by_class.values():
            options[0].cls.skyline.add(self.serial, tuple(option.wanted for option in options))

    def wake(self) -> None:
        """All workers are looked at."""
        if self.asleep:
            self.asleep = False
            for options in self.by_class.values():
                options[0].cls.skyline.remove(self.serial)

    def fits_into(self, serial: int, room: Vector) -> bool:
        """Whether a worker of this class with that much room has enough for a task."""
        return any(fits(room, option.wanted) for option in self.by_class.get(serial, ()))

    def update_barred(self, workers: Mapping[str, Worker]) -> bool:
        """Whether the exclusions begin or cease to count."""
        barred = frozenset(self.key.excluded) if self._others_could(workers) else frozenset()
        changed = barred != self.barred
        self.barred = barred
        return changed

    def _others_could(self, workers: Mapping[str, Worker]) -> bool:
        """Whether enough workers that take new tasks are not excluded, for one of the alternatives."""
        for alternative in range(len(self.key.demands)):
            classes = {option.cls.serial: option.cls for option in self.options if option.alternative == alternative}
            able = sum(cls.accepting for cls in classes.values())
            for name in self.key.excluded:
                worker = workers.get(name)
                able -= (
                    worker is not None and worker.accepting and worker.cls is not None and worker.cls.serial in classes
                )
            if able >= self.key.gang:
                return True
        return False


def _order(option: Option) -> tuple[tuple[float, ...], int, float, ClassKey]:
    return option[:4]
