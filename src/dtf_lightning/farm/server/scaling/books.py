"""What the record says of a pool, taken on: who has come, who has not, what was spent, what failed. Pure.

Rules that this file guards:
- All that is needed to go on is in the record: the next leader does not ask twice for who was asked for, and knows what was spent.
- Whoever carries the pool's label is of the pool, asked for or not.
- What fails is asked for again, each time later: `BACKOFF` seconds, then twice as many, up to `LATEST`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dtf_lightning.farm.record.scaling.values import PoolRecord, ScalingStep, WorkerOrder

DAY = 86_400.0
BACKOFF, LATEST = 10.0, 600.0
STEPS = 20
"""That are remembered."""


def taken_on(
    before: PoolRecord, present: Sequence[str], now: float, *, names: bool, start_within: float, seconds_cost: float
) -> PoolRecord:
    """Return the record as of now.

    Args:
        present: workers of the pool that are there.
        names: whether workers have the names that were asked for.
        seconds_cost: of one worker for a second.
    """
    came = [name for name in present if name not in before.members]
    orders = [order for order in before.orders if order.name not in present]
    if not names:
        orders = orders[len(came) :]
    late = [order for order in orders if now - order.at > start_within]
    after = replace(
        _spent(before, now, seconds_cost),
        orders=tuple(order for order in orders if order not in late),
        members=tuple(present),
        ending=tuple(name for name in before.ending if name in present),
    )
    if late:
        first = late[0].name
        more = f" and {len(late) - 1} more" if len(late) > 1 else ""
        return _with_failure(after, f"{first}{more} had not come after {start_within:.0f} s", now)
    return replace(after, failures=0, problem="", retry=0.0) if came and before.failures else after


def asked_for(before: PoolRecord, names: Iterable[str], reason: str, now: float) -> PoolRecord:
    """Return the record with workers that are asked for."""
    orders = tuple(WorkerOrder(name=name, at=now) for name in names)
    step = ScalingStep(at=now, started=len(orders), reason=reason)
    return replace(before, orders=before.orders + orders, started=now, steps=(*before.steps, step)[-STEPS:])


def let_go(before: PoolRecord, names: tuple[str, ...], reason: str, now: float, *, ends: bool) -> PoolRecord:
    """Return the record with workers that are drained. `ends`: the provider ends them once nothing runs there."""
    step = ScalingStep(at=now, drained=names, reason=reason)
    ending = (*before.ending, *(name for name in names if name not in before.ending)) if ends else before.ending
    return replace(before, drained=now, ending=ending, steps=(*before.steps, step)[-STEPS:])


def given(before: PoolRecord, names: Iterable[str]) -> PoolRecord:
    """Return the record as it is when the provider has said that these are on their way."""
    wanted = set(names)
    orders = tuple(replace(order, given=True) if order.name in wanted else order for order in before.orders)
    return replace(before, orders=orders)


def refused(before: PoolRecord, names: Iterable[str], problem: str, now: float) -> PoolRecord:
    """Return the record as it is when the provider has failed: they are not on their way, as far as is known."""
    wanted = set(names)
    orders = tuple(order for order in before.orders if order.given or order.name not in wanted)
    return _with_failure(replace(before, orders=orders), problem, now)


def _with_failure(before: PoolRecord, problem: str, now: float) -> PoolRecord:
    failures = before.failures + 1
    retry = now + min(BACKOFF * 2 ** min(failures - 1, 10), LATEST)
    return replace(before, failures=failures, problem=problem, retry=retry)


def _spent(before: PoolRecord, now: float, seconds_cost: float) -> PoolRecord:
    """Count what the workers that were there, or on their way, have cost since it was counted last."""
    day = now // DAY * DAY
    since = max(before.counted, day) if before.counted else now
    number = len(before.members) + len(before.orders)
    spent = (before.spent if before.day == day else 0.0) + max(now - since, 0.0) * number * seconds_cost
    return replace(before, spent=spent, day=day, counted=max(now, before.counted))
