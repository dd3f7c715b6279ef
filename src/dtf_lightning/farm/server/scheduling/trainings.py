"""`Trainings`: which parts of trainings may start, which are asked for their devices, and when all is over. A leader's.

A training is an array of which each instance is a part; `TaskSpecification.training` says how many of them it keeps.

Data flow: a part waits -> it is offered to the scheduler for one decision, or for good where its training has less than its
minimum (`cores.py`) -> it runs -> something waits that needs its device -> `AskToYield` -> its worker lets it leave -> it ends as
`yielded` and waits again -> its training has finished: what still waits is ended.

Rules that this file guards:
- The record alone says what was asked (`Kind.YIELD`): a new leader asks nobody twice, and forgets nobody.
- A part that has not left `lending.OVERDUE` seconds after it was asked is taken back, whatever its worker says.
- Parts above the minimum come only while the minimum runs, and what a training has less than that comes together.
- No part is started once one of its training has completed; until it is known whether one has, none is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.trainings.writes import AskToYield
from dtf_lightning.farm.record.values import Attempt, TaskSpecification, YieldRequest
from dtf_lightning.farm.record.writes import Write
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, Scheduler, Seat
from dtf_lightning.farm.rules.scheduling.yielding import AWAY, PRICE, Part, Wish, may_grow, time_away, who_yields
from dtf_lightning.farm.server.scheduling.cores import Cores
from dtf_lightning.farm.server.scheduling.lending import Lending, training_of
from dtf_lightning.farm.server.scheduling.projects import needs_of

LOOK = 0.25
"""Seconds between two looks at who could give something back, and who could grow."""
MOST = 64
"""Tasks that are looked at: as many devices can be asked for in one look."""
NEVER = float("inf")


@dataclass(slots=True)
class _World:
    """What there is of a training."""

    minimum: int
    there: set[str]
    """Parts that have a worker, or are about to."""
    waiting: list[str]
    """By their ids."""
    staying: int = 0
    """Of those that are there, how many were not asked to leave."""


class Trainings:
    """Not thread-safe.

    Args:
        ready: returns a part as the scheduler takes it.
    """

    def __init__(self, mirror: Mirror, fence: Compare, scheduler: Scheduler, ready: Callable[[str], ReadyTask]) -> None:
        self._mirror = mirror
        self._fence = fence
        self._scheduler = scheduler
        self._cores = Cores(scheduler, ready)
        self.now = 0.0
        """Of the latest change or decision, in seconds since the epoch; 0: before the first."""
        self._waiting: dict[str, None] = {}
        self._since: dict[str, float] = {}
        """Part that has a worker -> since when, as far as it is known here; else 0."""
        self._uncertain: dict[str, None] = {}
        """Trainings of which parts had ended before we led: whether one of them completed is to be looked up."""
        self._finished: set[str] = set()
        self._offered: set[str] = set()
        """Waiting parts that the scheduler has."""
        self._asked: dict[str, int] = {}
        """Part -> the revision of its attempt that we have asked; the mirror may not show it yet."""
        self._lending = Lending(mirror, fence)
        self._late: list[str] = []
        """Parts that were given a worker when their training had finished."""
        self._next_look = 0.0
        self._wants_look = False

    # --- what the record shows ---------------------------------------------------------------------------------------

    def waits(self, part: str) -> None:
        """A part has no worker."""
        self._since.pop(part, None)
        self._offered.discard(part)
        self._waiting[part] = None
        self._cores.withdraw(training_of(part))
        self._wants_look = True

    def runs(self, part: str) -> None:
        """A part has a worker."""
        if part in self._waiting and training_of(part) in self._finished:
            self._late.append(part)
        self._waiting.pop(part, None)
        self._offered.discard(part)
        self._since.setdefault(part, self.now)
        self._wants_look = True

    def gone(self, part: str) -> None:
        """A part, or a training, is not there any more."""
        self._waiting.pop(part, None)
        self._offered.discard(part)
        self._since.pop(part, None)
        self._uncertain.pop(part, None)
        self._finished.discard(part)
        self._cores.withdraw(part)
        self._asked.pop(part, None)
        self._lending.gone(part)
        self._wants_look = True

    def is_uncertain(self, training: str) -> None:
        """Parts of it had ended before we led."""
        self._uncertain[training] = None

    def is_certain(self, training: str, *, finished: bool) -> None:
        """It is known by now whether a part of it has completed."""
        self._uncertain.pop(training, None)
        if finished:
            self._finished.add(training)
            self._cores.withdraw(training)
        self._wants_look = True

    def completed(self, task: str) -> None:
        """A task has completed; if it is a part, its training has finished."""
        training = training_of(task)
        held = self._mirror.get(Kind.TASK, training)
        if held is not None and isinstance(held.value, TaskSpecification) and held.value.training:
            self.is_certain(training, finished=True)

    # --- what is decided ---------------------------------------------------------------------------------------------

    def ended(self) -> list[str]:
        """Return the parts to be ended because their training has finished, each once."""
        if not self._finished:
            return []
        over = [
            part
            for part in self._waiting
            if training_of(part) in self._finished and not self._scheduler.is_placed(part)
        ]
        late, self._late = self._late, []
        for part in over:
            self.gone(part)
            self._scheduler.task_gone(part)
        return over + late

    def requests(self, now: float) -> list[Write[Any]]:
        """Note what was given back, and take back what has not left in time."""
        self.now = now
        return self._lending.writes(now)

    def look(self, monotonic: float, now: float) -> tuple[list[Write[Any]], list[str]]:
        """Return whom to ask for devices, and the parts that were offered to the scheduler for its next decision only.

        `monotonic`, `now`: this moment in seconds, the latter since the epoch.
        """
        if not (self._waiting or self._since):
            return [], []
        if monotonic < self._next_look:
            self._wants_look = True
            return [], []
        self._next_look, self._wants_look = monotonic + LOOK, False
        seats = self._scheduler.seats()
        wishes = self._wishes()
        running = self._parts()
        answer = who_yields(wishes, seats, running, now)
        writes: list[Write[Any]] = []
        for one in answer.asked:
            revision = self._mirror.seen(Kind.ATTEMPT, one.part)
            self._asked[one.part] = revision
            worker = next(part.worker for part in running if part.task == one.part)
            request = YieldRequest(revision=revision, wanted_by=one.wanted_by, at=now, worker=worker)
            seen = self._mirror.seen(Kind.YIELD, one.part)
            writes.append(AskToYield(task=one.part, request=request, seen=seen, fence=self._fence))
        for training, room in answer.places.items():
            self._offered.update(self._cores.place(training, room, self._waiting))
        return writes, self._grow(answer.promised, seats, running, now)

    def not_made(self, write: AskToYield) -> None:
        """A request could not be written: it is decided anew."""
        self._asked.pop(write.task, None)
        self._wants_look = True

    @property
    def has_offers(self) -> bool:
        """Whether the scheduler has parts that it may place."""
        return bool(self._offered) or self._cores.any

    def spread(self, placement: Placement) -> list[Placement]:
        """Return a decision of the scheduler as one for each task: what a training needs to begin is decided at once."""
        if not self._cores.is_core(placement.task):
            return [placement]
        placed = self._cores.spread(placement, self._waiting)
        self._offered.update(one.task for one in placed)
        return placed

    def take_placed(self) -> list[Placement]:
        """Return the parts that were placed without the scheduler, each once."""
        return self._cores.take_placed()

    def holds_back(self, part: str) -> bool:
        """Whether a part waits that the scheduler was not told."""
        return part in self._waiting and part not in self._offered and not self._cores.wants_alone(part)

    def withdraw(self, offered: list[str]) -> None:
        """Take back the offers for one decision that came to nothing."""
        for part in offered:
            if not self._scheduler.is_placed(part):
                self._offered.discard(part)
                self._scheduler.task_gone(part)

    def lent_in_all(self, training: str) -> dict[str, float]:
        """Return what a training gave to others, as metrics of its result."""
        return self._lending.in_all(training)

    def next_deadline(self) -> tuple[float, float]:
        """Return when there is something to look at though nothing changes: on the monotonic clock, and on the wall's."""
        times = self._lending.deadlines()
        times += [back for part in self._waiting if (back := self._back(part)) > self.now]
        look = self._next_look if self._wants_look and (self._waiting or self._since) else NEVER
        return look, min((at for at in times if at > self.now), default=NEVER)

    def explain(self, part: str, now: float) -> str:
        """Say in one sentence why a part of a training does not run."""
        training = training_of(part)
        if training in self._uncertain:
            return "waits until it is known whether its training has finished"
        if (left := self._back(part) - now) > 0:
            return f"gave its device back, and stays away for another {left:.0f} s"
        if (why := self._cores.explain(training, part, now)) != "":
            return why
        return "fills a device once one is idle that nothing else waits for"

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _grow(self, promised: frozenset[str], seats: dict[str, Seat], running: list[Part], now: float) -> list[str]:
        """Offer parts: what trainings have less than their minimum for good, the others for one decision."""
        offered: list[str] = []
        for training, world in self._worlds(running).items():
            if len(world.there) < world.minimum:
                missing = world.minimum - len(world.there)
                is_time = now >= max((self._back(part) for part in world.waiting), default=0.0)
                self._cores.want(training, tuple(world.waiting[:missing]) if is_time else ())
                continue
            self._cores.want(training, ())
            for part in world.waiting if world.staying >= world.minimum else ():
                needs = self._needs(part)
                if now >= self._back(part) and any(may_grow(need, promised, seats) for need in needs):
                    self._cores.offer(part)
                    self._offered.add(part)
                    offered.append(part)
        return offered

    def _worlds(self, running: list[Part]) -> dict[str, _World]:
        """Return what there is of each training of which a part waits, and of which it is known that it goes on."""
        worlds: dict[str, _World] = {}
        for part in sorted(self._waiting):
            training, specification = training_of(part), self._specification(part)
            if specification is None or training in self._uncertain or training in self._finished:
                continue
            world = worlds.setdefault(training, _World(minimum=specification.training, there=set(), waiting=[]))
            if self._scheduler.is_placed(part):  # the record is about to show it
                world.there.add(part)
                world.staying += 1
            else:
                world.waiting.append(part)
        for there in running:
            if there.training in worlds:
                worlds[there.training].there.add(there.task)
                worlds[there.training].staying += not there.asked
        return worlds

    def _parts(self) -> list[Part]:
        found = []
        for name, since in self._since.items():
            specification, tried = self._specification(name), self._mirror.get(Kind.ATTEMPT, name)
            if (
                specification is None
                or tried is None
                or not isinstance(tried.value, Attempt)
                or not tried.value.workers
            ):
                continue
            needs = needs_of(self._mirror, specification)
            asked = self._mirror.get(Kind.YIELD, name)
            shown = asked.value.revision if asked is not None and isinstance(asked.value, YieldRequest) else 0
            found.append(
                Part(
                    task=name,
                    training=training_of(name),
                    minimum=specification.training,
                    suspend_for=specification.suspend_for,
                    priority=specification.priority,
                    worker=tried.value.workers[0],
                    need=_granted(needs, tried.value.alternative),
                    since=since,
                    asked=tried.mod_revision in (shown, self._asked.get(name)),
                )
            )
        return found

    def _wishes(self) -> list[Wish]:
        """Return what waits, in its order; what a training needs to begin as any even spread, and last as it fits."""
        wishes: list[Wish] = []
        cores: dict[str, int] = {}
        for task in self._scheduler.first_waiting(MOST):
            if (wish := self._wish(task)) is not None:
                wishes.append(wish)
                if self._cores.is_core(task):
                    cores[wish.task] = len(wishes)
        for training, place in sorted(cores.items(), key=lambda item: -item[1]):
            if (uneven := self._cores.uneven_wish(training)) is not None:
                wishes.insert(place, uneven)
        return wishes

    def _wish(self, task: str) -> Wish | None:
        if self._cores.is_core(task):
            return self._cores.wish(task)
        specification, tried = self._specification(task), self._mirror.get(Kind.ATTEMPT, task)
        if specification is None:
            return None
        excluded = tried.value.excluded if tried is not None and isinstance(tried.value, Attempt) else ()
        needs = needs_of(self._mirror, specification)
        return Wish(
            task=task,
            priority=specification.priority,
            needs=needs,
            gang=specification.gang,
            excluded=(*excluded, *specification.avoid),
            kind=self._scheduler.kind_of(task),
        )

    def _needs(self, task: str) -> tuple[Need, ...]:
        specification = self._specification(task)
        return () if specification is None else needs_of(self._mirror, specification)

    def _back(self, part: str) -> float:
        """When a part that gave its device back may come again; 0: it never did."""
        tried = self._mirror.get(Kind.ATTEMPT, part)
        yielded = tried.value.yielded if tried is not None and isinstance(tried.value, Attempt) else 0.0
        if not yielded:
            return 0.0
        return yielded + time_away(self._lending.leaves(training_of(part)), least=AWAY, price=PRICE)

    def _specification(self, task: str) -> TaskSpecification | None:
        held = self._mirror.get(Kind.TASK, task)
        return held.value if held is not None and isinstance(held.value, TaskSpecification) else None


def _granted(needs: tuple[Need, ...], alternative: int) -> Need:
    return needs[alternative] if 0 <= alternative < len(needs) else needs[0]
