"""Which parts of trainings give their devices to work that waits, and when a training may grow again. Pure.

A training has up to so many parts, each a task on one worker. It keeps its minimum to its end; what it has above that, it
only borrows from the pool.

Rules that this file guards:
- Only work of at least a part's priority gets its device, and never a part of a training that has no more than its minimum.
- A part is asked only where that makes room: with all that was asked, some task fits; without any one of it, it does not.
- Where parts of one training hold the same on a worker, as they do, no task waits that could be helped.
- Room that was asked for counts as there: what waits is given it in its order, and nobody is asked twice for one task.
- Of several ways to make room the one is taken that asks the fewest parts, of trainings with the largest surplus, and parts
  that have not just come.
- A training grows only where no device is on its way to work that waits: what grows there would be asked back at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import Seat
from dtf_lightning.farm.rules.scheduling.worker_classes import Demand

MIN_STAY = 20.0
"""Seconds for which a part that has just come is asked last."""
AWAY = 10.0
"""Seconds for which a part that gave its device back stays away: rescales cost the others a pause."""
DEADLINE = 30.0
"""Seconds that a part has to leave at a step boundary, before it is killed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A task that is ready and has no worker."""

    task: str
    priority: int
    needs: tuple[Need, ...]
    gang: int = 1
    excluded: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a training that has a worker."""

    task: str
    training: str
    minimum: int
    """Parts that its training keeps."""
    priority: int
    worker: str
    need: Need
    since: float = 0.0
    """Seconds since the epoch."""
    asked: bool = False
    """Whether it is on its way out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Yield:
    """A part that is to give its device back, and the task that needs it."""

    part: str
    wanted_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """Who is asked, and the workers where something that waits has room, or gets some."""

    asked: list[Yield]
    promised: frozenset[str]


@dataclass(slots=True)
class _Plan:
    """What has been decided so far."""

    free: dict[str, dict[str, int]]
    parts: dict[str, list[Part]]
    """Worker -> parts that may still be asked."""
    surplus: dict[str, int]
    """Training -> parts above its minimum that are not asked."""
    asked: list[Yield] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)


def who_yields(
    wishes: Sequence[Wish], seats: Mapping[str, Seat], parts: Iterable[Part], now: float, *, min_stay: float = MIN_STAY
) -> Answer:
    """Return which parts are to be asked for their devices.

    Args:
        wishes: in the order in which they get what there is.
        seats: by worker.
        parts: all that have a worker.
        now: seconds since the epoch.
        min_stay: seconds for which a part that has just come is asked last.
    """
    plan = _Plan(free={worker: dict(seat.free) for worker, seat in seats.items()}, parts={}, surplus={})
    for part in parts:
        if part.asked:
            if part.worker in seats:
                _give(plan.free[part.worker], taken(part.need, seats[part.worker]))
        else:
            plan.surplus[part.training] = plan.surplus.get(part.training, -part.minimum) + 1
            plan.parts.setdefault(part.worker, []).append(part)
    for wish in wishes:
        _serve(wish, seats, plan, now, min_stay)
    return Answer(asked=plan.asked, promised=frozenset(plan.promised))


def may_grow(need: Need, promised: Iterable[str], seats: Mapping[str, Seat]) -> bool:
    """Whether a part with this need can come without getting in the way of what gets one of these workers."""
    return not any(worker in seats and could_run(need, seats[worker]) for worker in promised)


def could_run(need: Need, seat: Seat) -> bool:
    """Whether a worker could run this when it is idle."""
    return seat.labels.issuperset(need.labels) and _fits(seat.total, _wanted(need))


def taken(need: Need, seat: Seat) -> dict[str, int]:
    """Return the thousandths of each resource that this takes of a worker."""
    return dict(seat.total) if need.exclusive else _wanted(need)


def _wanted(need: Need) -> dict[str, int]:
    return dict(Demand.of(need).amounts)


def _fits(free: Mapping[str, int], wanted: Mapping[str, int]) -> bool:
    return all(free.get(name, 0) >= amount for name, amount in wanted.items())


def _give(free: dict[str, int], amounts: Mapping[str, int], sign: int = 1) -> None:
    for name, amount in amounts.items():
        free[name] = free.get(name, 0) + sign * amount


def _serve(wish: Wish, seats: Mapping[str, Seat], plan: _Plan, now: float, min_stay: float) -> None:
    """Give a task what is free, or what becomes free by asking as few parts as can be; nothing if that is not enough."""
    for need in wish.needs:
        ways: list[tuple[tuple[float, ...], str, list[Part]]] = []
        surplus = dict(plan.surplus)
        for worker, seat in seats.items():
            if not seat.accepting or worker in wish.excluded or not could_run(need, seat):
                continue
            found = _least(wish, need, seat, plan.free[worker], plan.parts.get(worker, []), surplus, now - min_stay)
            if found is not None:
                late = sum(part.since > now - min_stay for part in found)
                most = -max((surplus[part.training] for part in found), default=0)
                ways.append(((len(found), late, most), worker, found))
        chosen = _first_of(ways, wish.gang, surplus)
        if chosen:
            for worker, found in chosen:
                for part in found:
                    plan.asked.append(Yield(part=part.task, wanted_by=wish.task))
                    plan.parts[worker].remove(part)
                    plan.surplus[part.training] -= 1
                    _give(plan.free[worker], taken(part.need, seats[worker]))
                _give(plan.free[worker], taken(need, seats[worker]), -1)
                plan.promised.add(worker)
            return


def _first_of(
    ways: list[tuple[tuple[float, ...], str, list[Part]]], gang: int, surplus: Mapping[str, int]
) -> list[tuple[str, list[Part]]]:
    """The cheapest workers that make room for all members without a training going below its minimum; else none."""
    left = dict(surplus)
    chosen: list[tuple[str, list[Part]]] = []
    for _, worker, found in sorted(ways, key=lambda way: (way[0], way[1])):
        after = dict(left)
        for part in found:
            after[part.training] -= 1
        if all(after[part.training] >= 0 for part in found):
            left = after
            chosen.append((worker, found))
            if len(chosen) == gang:
                return chosen
    return []


def _least(
    wish: Wish,
    need: Need,
    seat: Seat,
    free_now: Mapping[str, int],
    parts: list[Part],
    surplus: Mapping[str, int],
    settled: float,
) -> list[Part] | None:
    """The parts of one worker that make room there, none of them in vain; `None` if they cannot."""
    wanted, free = taken(need, seat), dict(free_now)
    if _fits(free, wanted):
        return []
    able = [part for part in parts if part.priority <= wish.priority]
    able.sort(key=lambda part: (part.since > settled, -surplus[part.training], -part.since, part.task))
    left, found = dict(surplus), []
    for part in able:
        if left[part.training] > 0:
            left[part.training] -= 1
            found.append(part)
            _give(free, taken(part.need, seat))
            if _fits(free, wanted):
                return _without_vain(found, free, wanted, seat)
    return None


def _without_vain(found: list[Part], free: dict[str, int], wanted: Mapping[str, int], seat: Seat) -> list[Part]:
    for part in list(found):
        _give(free, taken(part.need, seat), -1)
        if _fits(free, wanted):
            found.remove(part)
        else:
            _give(free, taken(part.need, seat))
    return found
