"""Which parts of trainings give their devices to work that waits, and when a training may grow again. Pure.

A training has up to so many parts, each a task on one worker. It keeps its minimum, unless it says from which priority on
work gets that, too (`suspend_for`); what it has above that, it only borrows from the pool.

Rules that this file guards:
- Only work of at least a part's priority gets its device. What a training keeps is asked for only by work of the priority
  that it names, which is above its own, and only where nothing else would help.
- A training goes below its minimum with all its parts: the others would hold devices and train nothing.
- Else a part is asked only where that makes room: with all that was asked, some task fits; without any one of it, it does not.
- Where parts of one training hold the same on a worker, as they do, no task waits that could be helped.
- A worker that is held free for others helps nobody else, neither with what is free there nor with its parts.
- Room that was asked for counts as there: what waits is given it in its order, and nobody is asked twice for one task.
- Of several ways to make room the one is taken that leaves all trainings their minimum, then the one that asks the fewest
  parts, of trainings with the largest surplus, and parts that have not just come.
- What a training needs to begin is one wish, however its parts may be spread: of several with one name one is served. Spread unevenly it
  is placed here, at once and where it is free: the scheduler's gangs have equal members.
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
PRICE = 4.0
"""A part stays away so many times as long as leaves of its training took: of a device that goes to and fro at once, a fifth is
lost by that at most."""
MOST_AWAY = 120.0
"""Seconds for which a part stays away at most, whatever leaves took."""
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
    kind: int | None = None
    """As the scheduler names it."""
    slots: int = 1
    """That it needs, of this need each, on any workers."""
    kinds: frozenset[int] = frozenset()
    """What else the scheduler names it: what is held free for these is held for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of a training that has a worker."""

    task: str
    training: str
    minimum: int
    """Parts that its training keeps."""
    suspend_for: int | None = None
    """Priority from which on work gets these, too; `None`: it never does."""
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
    places: Mapping[str, Placed]
    """Wishes for several slots for which all is free now."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """Where a wish for several slots has room."""

    workers: tuple[str, ...]
    """One for each slot; the same worker may be named several times."""
    alternative: int
    """Number of its need."""


@dataclass(slots=True)
class _Plan:
    """What has been decided so far."""

    free: dict[str, dict[str, int]]
    """Worker -> what is there for wishes, with what was asked for."""
    idle: dict[str, dict[str, int]]
    """Worker -> what of that is free now."""
    parts: dict[str, list[Part]]
    """Worker -> parts that may still be asked."""
    surplus: dict[str, int]
    """Training -> parts above its minimum that are not asked; below 0: it waits, or is about to."""
    served: set[str] = field(default_factory=set)
    """Names of wishes."""
    asked: list[Yield] = field(default_factory=list)
    promised: set[str] = field(default_factory=set)
    places: dict[str, Placed] = field(default_factory=dict)

    def copy(self) -> _Plan:
        """Return one that can be changed without this one."""
        return _Plan(
            free={worker: dict(free) for worker, free in self.free.items()},
            idle={worker: dict(free) for worker, free in self.idle.items()},
            parts={worker: list(parts) for worker, parts in self.parts.items()},
            surplus=dict(self.surplus),
            served=set(self.served),
            asked=list(self.asked),
            promised=set(self.promised),
            places=dict(self.places),
        )


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
    plan = _Plan(
        free={worker: dict(seat.free) for worker, seat in seats.items()},
        idle={worker: dict(seat.free) for worker, seat in seats.items()},
        parts={},
        surplus={},
    )
    for part in parts:
        if part.asked:
            if part.worker in seats:
                _give(plan.free[part.worker], taken(part.need, seats[part.worker]))
        else:
            plan.surplus[part.training] = plan.surplus.get(part.training, -part.minimum) + 1
            plan.parts.setdefault(part.worker, []).append(part)
    for wish in wishes:
        if wish.task not in plan.served and wish.slots > 1:
            plan = _serve_slots(wish, seats, plan, now - min_stay)
        elif wish.task not in plan.served:
            _serve(wish, seats, plan, now - min_stay)
    return Answer(asked=plan.asked, promised=frozenset(plan.promised), places=plan.places)


def time_away(leaves: Sequence[float], *, least: float = AWAY, price: float = PRICE) -> float:
    """Return the seconds for which a part that gave its device back stays away.

    A training whose leaves take long is asked less often by that: it stays away until a return is worth the next leave.

    Args:
        leaves: seconds from a request to its device's being free, of the training's latest borrowings.
        least: seconds, also where nothing is known.
        price: how many times as long as a leave it stays away.
    """
    if not leaves:
        return least
    usual = sorted(leaves)[(len(leaves) - 1) // 2]
    return max(least, min(price * usual, MOST_AWAY))


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


def _serve(wish: Wish, seats: Mapping[str, Seat], plan: _Plan, settled: float) -> None:
    """Give a task what is free, or what becomes free by asking as few parts as can be; nothing if that is not enough.

    `settled`: the time since which a part has just come.
    """
    for need in wish.needs:
        surplus = dict(plan.surplus)
        chosen = _first_of(wish, _ways(wish, need, seats, plan, settled), surplus)
        if chosen:
            plan.served.add(wish.task)
            for worker, found in chosen:
                _take(wish, need, worker, found, seats, plan)
            _suspend(wish, (part for _, found in chosen for part in found), seats, plan)
            return


def _serve_slots(wish: Wish, seats: Mapping[str, Seat], plan: _Plan, settled: float) -> _Plan:
    """Return the plan with all slots of a wish, one after the other where it costs least; as it was if there is no room for all."""
    for alternative, need in enumerate(wish.needs):
        after = plan.copy()
        workers: list[str] = []
        asked: list[Part] = []
        while len(workers) < wish.slots:
            ways = _ways(wish, need, seats, after, settled)
            # Where it is free now comes first, so that nothing waits for a device that is on its way.
            ways.sort(key=lambda way: (way[0], not _fits(after.idle[way[1]], taken(need, seats[way[1]])), way[1]))
            one = _first_of(wish, ways, dict(after.surplus), is_sorted=True)
            if not one:
                break
            ((worker, found),) = one
            _take(wish, need, worker, found, seats, after)
            workers.append(worker)
            asked += found
        else:
            after.served.add(wish.task)
            _suspend(wish, asked, seats, after)
            if all(amount >= 0 for worker in workers for amount in after.idle[worker].values()):
                after.places[wish.task] = Placed(workers=tuple(workers), alternative=alternative)
            return after
    return plan


def _ways(
    wish: Wish, need: Need, seats: Mapping[str, Seat], plan: _Plan, settled: float
) -> list[tuple[tuple[float, ...], str, list[Part]]]:
    """Return what it costs at each worker that can make room: the price, the worker, and the parts to be asked."""
    ways: list[tuple[tuple[float, ...], str, list[Part]]] = []
    for worker, seat in seats.items():
        is_held = seat.held_for is not None and seat.held_for != wish.kind and seat.held_for not in wish.kinds
        if is_held or not seat.accepting or worker in wish.excluded or not could_run(need, seat):
            continue
        found = _least(wish, need, seat, plan.free[worker], plan.parts.get(worker, []), plan.surplus, settled)
        if found is not None:
            late = sum(part.since > settled for part in found)
            most = -max((plan.surplus[part.training] for part in found), default=0)
            ways.append(((_suspended(found, plan.surplus), len(found), late, most), worker, found))
    return ways


def _take(wish: Wish, need: Need, worker: str, found: list[Part], seats: Mapping[str, Seat], plan: _Plan) -> None:
    """Promise a worker's room to a wish, after its parts were asked."""
    for part in found:
        _ask(part, wish, seats, plan)
    _give(plan.free[worker], taken(need, seats[worker]), -1)
    _give(plan.idle[worker], taken(need, seats[worker]), -1)
    plan.promised.add(worker)


def _suspend(wish: Wish, asked: Iterable[Part], seats: Mapping[str, Seat], plan: _Plan) -> None:
    """Ask all parts of those trainings that have less than their minimum without these."""
    over = {part.training for part in asked if plan.surplus[part.training] < 0}
    for part in [part for parts in plan.parts.values() for part in parts if part.training in over]:
        _ask(part, wish, seats, plan)


def _ask(part: Part, wish: Wish, seats: Mapping[str, Seat], plan: _Plan) -> None:
    plan.asked.append(Yield(part=part.task, wanted_by=wish.task))
    plan.parts[part.worker].remove(part)
    plan.surplus[part.training] -= 1
    if part.worker in seats:
        _give(plan.free[part.worker], taken(part.need, seats[part.worker]))


def _suspended(found: list[Part], surplus: Mapping[str, int]) -> int:
    """The number of trainings that go below their minimum by this."""
    counts: dict[str, int] = {}
    for part in found:
        counts[part.training] = counts.get(part.training, 0) + 1
    return sum(number > max(0, surplus[training]) for training, number in counts.items())


def _gets_all(wish: Wish, part: Part) -> bool:
    """Whether a task gets what this part's training keeps, too."""
    return part.suspend_for is not None and wish.priority >= part.suspend_for and wish.priority > part.priority


def _first_of(
    wish: Wish,
    ways: list[tuple[tuple[float, ...], str, list[Part]]],
    surplus: Mapping[str, int],
    *,
    is_sorted: bool = False,
) -> list[tuple[str, list[Part]]]:
    """The cheapest workers that make room for all members, of trainings that may be asked for so much; else none."""
    left = dict(surplus)
    chosen: list[tuple[str, list[Part]]] = []
    for _, worker, found in ways if is_sorted else sorted(ways, key=lambda way: (way[0], way[1])):
        after = dict(left)
        for part in found:
            after[part.training] -= 1
        if all(after[part.training] >= 0 or _gets_all(wish, part) for part in found):
            left = after
            chosen.append((worker, found))
            if len(chosen) == wish.gang:
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
    for is_kept in (False, True):
        for part in able:
            if part in found or not (_gets_all(wish, part) if is_kept else left[part.training] > 0):
                continue
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
