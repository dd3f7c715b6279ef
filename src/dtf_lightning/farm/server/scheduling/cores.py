"""`Cores`: what a training has less than its minimum, for the scheduler: parts that are placed together or not at all.

The scheduler knows gangs, whose members take one worker each. Parts may share a worker: so a core of four is offered as a gang
of four, as a gang of two of twice the need, and as one of four times the need. Whichever is placed first is the core's
place; the others are withdrawn with it.

Rules that this file guards:
- A core is wanted for good: it has its rank among all that waits, and workers may be reserved for it.
- Where it was placed, each of its parts is placed for itself before anything else is decided.
- A core of one part is that part.
- Where no even spread has room, its parts fill what there is unevenly, if nothing limits them but room: limits and licences are
  counted by the scheduler, which is not asked then.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, Scheduler
from dtf_lightning.farm.rules.scheduling.yielding import Placed, Wish

_OF = "/"
"""Between a training's id and the number of parts for each worker; no task's id has it."""


class Cores:
    """Not thread-safe.

    Args:
        ready: returns a part as the scheduler takes it.
    """

    def __init__(self, scheduler: Scheduler, ready: Callable[[str], ReadyTask]) -> None:
        self._scheduler = scheduler
        self._ready = ready
        self._wanted: dict[str, tuple[str, ...]] = {}
        """Training -> the parts that are to start together."""
        self._offers: dict[str, dict[str, ReadyTask]] = {}
        """Training -> what the scheduler was told, by its names."""
        self._unevenly: list[Placement] = []

    @property
    def any(self) -> bool:
        """Whether one is wanted."""
        return bool(self._wanted)

    def is_core(self, task: str) -> bool:
        """Whether the scheduler means a core of several parts by this."""
        return _OF in task

    def wants_alone(self, part: str) -> bool:
        """Whether the scheduler knows a part by its own name."""
        return (part,) in self._wanted.values()

    def offer(self, part: str) -> None:
        """Let the scheduler place a part by itself."""
        self._scheduler.task_ready(self._ready(part))

    def want(self, training: str, parts: tuple[str, ...]) -> None:
        """Let these parts start together, in the place of what was wanted before; none: no more."""
        if self._wanted.get(training, ()) == parts:
            return
        self.withdraw(training)
        if parts:
            self._wanted[training] = parts
            self._offers[training] = offers(training, parts, self._ready(parts[0]))
            for offer in self._offers[training].values():
                self._scheduler.task_ready(offer)

    def withdraw(self, training: str) -> None:
        """Let nothing of a training start that did not."""
        parts = self._wanted.pop(training, ())
        for name in self._offers.pop(training, ()):
            if name not in parts or not self._scheduler.is_placed(name):
                self._scheduler.task_gone(name)

    def spread(self, placement: Placement, waiting: Container[str]) -> list[Placement]:
        """Return a placement for each part of a core; none if another way was placed before, or a part waits no more."""
        training, _, each = placement.task.rpartition(_OF)
        parts = self._wanted.get(training, ())
        self.withdraw(training)
        self._scheduler.task_gone(placement.task)
        if not parts or not all(part in waiting for part in parts):
            return []
        workers = [worker for worker in placement.workers for _ in range(int(each))]
        return self._place(parts, workers, placement.alternative)

    def wish(self, task: str) -> Wish | None:
        """Return what a core needs of those that could give it, by the training's name."""
        training = task.rpartition(_OF)[0]
        offer = self._offers.get(training, {}).get(task)
        if offer is None:
            return None
        kind = self._scheduler.kind_of(task)
        return Wish(task=training, priority=offer.priority, needs=offer.needs, gang=offer.gang, kind=kind)

    def uneven_wish(self, training: str) -> Wish | None:
        """Return what a core needs where its parts lie as they fit; `None` for one that the scheduler alone may place."""
        parts, offers = self._wanted.get(training, ()), self._offers.get(training, {})
        offer = offers.get(f"{training}{_OF}1")
        if offer is None or offer.limits:
            return None
        kinds = frozenset(kind for name in offers if (kind := self._scheduler.kind_of(name)) is not None)
        return Wish(task=training, priority=offer.priority, needs=offer.needs, slots=len(parts), kinds=kinds)

    def place(self, training: str, placed: Placed, waiting: Container[str]) -> tuple[str, ...]:
        """Place the parts of a core at these workers, and return them; none if it is not wanted any more."""
        parts = self._wanted.get(training, ())
        self.withdraw(training)
        if len(parts) != len(placed.workers) or not all(part in waiting for part in parts):
            return ()
        self._unevenly += self._place(parts, placed.workers, placed.alternative)
        return parts

    def take_placed(self) -> list[Placement]:
        """Return what `place` has placed, each once."""
        placed, self._unevenly = self._unevenly, []
        return placed

    def _place(self, parts: Sequence[str], workers: Sequence[str], alternative: int) -> list[Placement]:
        placed = [
            Placement(task=part, workers=(worker,), alternative=alternative)
            for part, worker in zip(parts, workers, strict=True)
        ]
        for one in placed:
            self._scheduler.task_placed(self._ready(one.task), one.workers, one.alternative)
        return placed

    def explain(self, training: str, part: str, now: float) -> str:
        """Say why a part does not run that is to start with others; "": it is none."""
        parts = self._wanted.get(training, ())
        if part not in parts or len(parts) < 2:
            return ""
        why = self._scheduler.explain(f"{training}{_OF}1", now)
        return f"starts together with {len(parts) - 1} more of its training, or not at all: {why}"


def offers(training: str, parts: tuple[str, ...], part: ReadyTask) -> dict[str, ReadyTask]:
    """Return the ways in which parts that need the same can be spread evenly over workers. Pure.

    Args:
        part: one of them.
    """
    number = len(parts)
    if number == 1:
        return {part.task: part}
    limits = {name: amount * number for name, amount in part.limits.items()}
    found = {}
    for each in range(1, number + 1):
        if number % each or (each > 1 and any(need.exclusive for need in part.needs)):
            continue
        name = f"{training}{_OF}{each}"
        needs = tuple(_times(need, each) for need in part.needs)
        found[name] = replace(part, task=name, gang=number // each, needs=needs, excluded=(), limits=limits)
    return found


def _times(need: Need, number: int) -> Need:
    return replace(need, amounts={resource: amount * number for resource, amount in need.amounts.items()})
