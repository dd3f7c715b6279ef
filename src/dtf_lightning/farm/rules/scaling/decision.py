"""How many workers of a pool are to be started now, and which are to be drained, with the reason in words. Pure.

Rules that this file guards:
- Nothing is killed: a worker is drained, ends what it runs, and goes.
- There are never more workers than the maximum, those that leave and those that are on their way among them; what a provider
  gives beyond it is drained at once, idle ones first.
- The minimum is kept, at once, whatever else holds but the maximum and the budget.
- What waits is served: by so many workers as its expected durations call for, by one more whenever the oldest has waited for
  longer than that and none is on its way, and always by enough for the widest gang.
- No flapping: within the cool-down after a start nothing is drained for being idle, and none is started after a drain but up to
  the minimum. Only who has been idle for long enough is drained.
- The budget is never exceeded: a start must be paid for `AHEAD`, and what cannot be paid for `NOTICE` more is drained.
  What runs for longer than that after it was drained costs more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtf_lightning.farm.rules.scaling.observation import PoolWorker, SeenPool

NOTICE = 600.0
"""Seconds for which a worker is still paid when it is drained for the budget's sake."""
AHEAD = 1800.0
"""Seconds for which a worker must be paid that is started."""
NOISE = 1e-9


@dataclass(frozen=True, kw_only=True)
class PoolDecision:
    """What is to be done about a pool."""

    start: int = 0
    drain: tuple[str, ...] = ()
    """Names of workers."""
    target: int = 0
    """How many there should be."""
    reason: str = ""
    """One sentence, without a full stop."""


def decide(seen: SeenPool) -> PoolDecision:
    """Return what is to be done now."""
    limits = seen.limits
    staying = [one for one in seen.workers if not one.leaving]
    here = len(staying) + seen.starting
    needed, why = _needed(seen, staying)
    target = min(max(needed, limits.minimum), limits.maximum)
    if target != needed:
        why = f"{why}; {'at least' if target > needed else 'at most'} {target} are wanted"
    if here < target:
        return _grow(seen, here, target, why)
    return _shrink(seen, staying, here, target, why)


def _needed(seen: SeenPool, staying: list[PoolWorker]) -> tuple[int, str]:
    limits = seen.limits
    busy = sum(one.busy for one in staying)
    used = sum(one.used for one in staying if one.busy)
    base = max(busy, math.ceil(used / limits.busy_share - NOISE))
    told = f"{busy} of {len(staying)} workers are busy"
    if seen.waiting:
        told = f"{_tasks(seen.waiting)} for {seen.oldest:.0f} s and will take {seen.backlog:.0f} worker-seconds; {told}"
    if not seen.waiting or seen.oldest < limits.patience:
        if base > busy:
            return base, f"{told}, above {100 * limits.busy_share:.0f} %"
        return base, told
    wanted = math.ceil(seen.backlog / limits.serve_within - seen.beside - NOISE)
    ready = len(staying) - busy + seen.starting
    if wanted > 0 or seen.oldest >= limits.serve_within:
        wanted = max(wanted, math.ceil(seen.widest - NOISE))
    if seen.oldest >= limits.serve_within and not seen.starting:
        wanted = max(wanted, ready + 1)
    wanted = max(min(wanted, math.ceil(seen.width - NOISE)), 0)
    if not wanted and seen.beside:
        told += ", and others have the time for it"
    return max(base, busy + wanted), told


def _tasks(waiting: int) -> str:
    return "1 task has waited" if waiting == 1 else f"{waiting} tasks wait, the oldest"


def _grow(seen: SeenPool, here: int, target: int, why: str) -> PoolDecision:
    limits = seen.limits
    leaving = sum(one.leaving for one in seen.workers)
    if seen.retry_in > 0:
        return PoolDecision(
            target=target,
            reason=f"{why}; the provider failed ({seen.problem}), it is asked again in {seen.retry_in:.0f} s",
        )
    aim = target
    if seen.since_drain < limits.cool_down and here >= limits.minimum:
        left = limits.cool_down - seen.since_drain
        return PoolDecision(target=target, reason=f"{why}; nothing is started for {left:.0f} s more after a drain")
    if seen.since_drain < limits.cool_down:
        aim = min(target, limits.minimum)
    number = min(aim - here, limits.maximum - here - leaving)
    if number <= 0:
        return PoolDecision(
            target=target, reason=f"{why}; {leaving} are leaving, and there may be {limits.maximum} at most"
        )
    paid = _paid(seen, AHEAD) - here - leaving
    if paid <= 0:
        return PoolDecision(
            target=target,
            reason=f"{why}; {seen.spent:.2f} of the day's {limits.budget:.2f} are spent: none more can be paid",
        )
    return PoolDecision(start=min(number, paid), target=target, reason=why)


def _shrink(seen: SeenPool, staying: list[PoolWorker], here: int, target: int, why: str) -> PoolDecision:
    limits = seen.limits
    paid = _paid(seen, NOTICE)
    most = min(limits.maximum, paid)
    leaving = sum(one.leaving for one in seen.workers)
    excess = here + (leaving if paid < limits.maximum else 0) - most
    if excess > 0:
        drain = _last(staying, excess) if limits.in_order else _idlest(staying, excess)
        if paid < limits.maximum:
            why = f"{why}; {seen.spent:.2f} of the day's {limits.budget or 0:.2f} are spent"
        else:
            why = f"{why}; there are {here}, and may be {limits.maximum}"
        return PoolDecision(drain=drain, target=min(target, most), reason=why)
    if here == target or seen.since_start < limits.cool_down:
        return PoolDecision(target=target, reason=why)
    number = max(min(here - target, len(staying) - limits.minimum), 0)
    idle = [one for one in staying if not one.busy and one.idle >= limits.idle]
    drain = _last(_tail(staying, idle), number) if limits.in_order else _idlest(idle, number)
    if drain:
        why = f"{why}; {len(drain)} idle for {limits.idle:.0f} s or more"
    return PoolDecision(drain=drain, target=target, reason=why)


def _paid(seen: SeenPool, seconds: float) -> int:
    """How many workers what is left pays for so long."""
    limits = seen.limits
    if limits.budget is None or limits.cost <= 0:
        return 1 << 30
    return max(math.floor((limits.budget - seen.spent) / (limits.seconds_cost * seconds) + NOISE), 0)


def _idlest(staying: list[PoolWorker], number: int) -> tuple[str, ...]:
    order = sorted(staying, key=lambda one: (one.busy, -one.idle, one.used, one.name))
    return tuple(one.name for one in order[:number])


def _last(staying: list[PoolWorker], number: int) -> tuple[str, ...]:
    return tuple(one.name for one in staying[-number:]) if number else ()


def _tail(staying: list[PoolWorker], idle: list[PoolWorker]) -> list[PoolWorker]:
    """Those of `idle` after which nobody stays."""
    start = len(staying)
    while start and staying[start - 1] in idle:
        start -= 1
    return staying[start:]
