"""How many workers of a pool are started and drained: beside a slow rule that looks at everything that is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.scaling.decision import AHEAD, NOTICE, decide
from dtf_lightning.farm.rules.scaling.observation import PoolLimits, PoolWorker, SeenPool

LIMITS = PoolLimits(minimum=0, maximum=10)
WAITS = {"waiting": 4, "backlog": 1200.0, "width": 4.0, "widest": 1.0, "oldest": 30.0}


def workers(busy: int = 0, idle: int = 0, *, idle_for: float = 1e6, leaving: int = 0) -> tuple[PoolWorker, ...]:
    return (
        *(PoolWorker(name=f"b{one}", busy=True, used=1.0) for one in range(busy)),
        *(PoolWorker(name=f"i{one}", idle=idle_for) for one in range(idle)),
        *(PoolWorker(name=f"l{one}", leaving=True) for one in range(leaving)),
    )


def seen(limits: PoolLimits = LIMITS, **fields) -> SeenPool:
    return SeenPool(limits=limits, **fields)


@pytest.mark.parametrize(
    ("pool", "start", "drained"),
    [
        (seen(), 0, 0),
        (seen(**WAITS), 4, 0),  # 1200 worker-seconds within 300
        (seen(**WAITS | {"backlog": 500.0}), 2, 0),
        (seen(**WAITS | {"width": 3.0}), 3, 0),  # no more than could run at once
        (seen(**WAITS | {"oldest": 5.0}), 0, 0),  # it may find room yet
        (seen(**WAITS, starting=4), 0, 0),
        (seen(**WAITS, beside=2.0), 2, 0),
        (seen(**WAITS, beside=4.0), 0, 0),  # others have the time
        (seen(**WAITS | {"oldest": 400.0}, beside=4.0), 1, 0),  # they had not
        (seen(**WAITS | {"backlog": 10.0, "widest": 4.0}), 4, 0),  # a gang
        (seen(**WAITS | {"oldest": 400.0, "widest": 3.0}, beside=4.0, starting=1), 2, 0),
        (seen(**WAITS | {"oldest": 400.0, "backlog": 10.0}, workers=workers(idle=2)), 1, 0),  # these do not help it
        (seen(replace(LIMITS, maximum=2), **WAITS), 2, 0),
        (seen(replace(LIMITS, minimum=3)), 3, 0),
        (seen(**WAITS, workers=workers(busy=7)), 3, 0),
        (seen(**WAITS, workers=workers(busy=7, leaving=2)), 1, 0),
        (seen(**WAITS, since_drain=60.0), 0, 0),
        (seen(replace(LIMITS, minimum=2), **WAITS, since_drain=60.0), 2, 0),
        (seen(**WAITS, retry_in=5.0), 0, 0),
        (seen(workers=workers(busy=1, idle=3)), 0, 3),
        (seen(replace(LIMITS, minimum=3), workers=workers(busy=1, idle=3)), 0, 1),
        (seen(replace(LIMITS, minimum=3), workers=workers(idle=3), starting=2), 0, 0),  # these may not come
        (seen(workers=workers(idle=3, idle_for=299.0)), 0, 0),
        (seen(workers=workers(idle=3), since_start=60.0), 0, 0),
        (seen(replace(LIMITS, maximum=2), workers=workers(busy=3, idle=2)), 0, 3),
        (seen(replace(LIMITS, busy_share=0.8), workers=workers(busy=8)), 2, 0),
        (seen(replace(LIMITS, cost=3600.0, budget=2 * AHEAD), **WAITS), 2, 0),
        (seen(replace(LIMITS, cost=3600.0, budget=2 * NOTICE), workers=workers(busy=5)), 0, 3),
    ],
)
def test_what_is_done(pool, start, drained):
    told = decide(pool)
    assert (told.start, len(told.drain)) == (start, drained)
    assert told.reason


def test_the_reason_has_its_numbers():
    told = decide(seen(**WAITS, workers=workers(busy=2, idle=1), retry_in=9.0, problem="no quota"))
    assert told.reason == (
        "4 tasks wait, the oldest for 30 s and will take 1200 worker-seconds; 2 of 3 workers are busy; the provider failed (no quota), "
        "it is asked again in 9 s"
    )


def test_only_the_last_of_a_stateful_set_go():
    """The one in the middle has to wait for the busy one after it; above the maximum the last ones go, busy or not."""
    limits = replace(LIMITS, in_order=True)
    order = tuple(
        PoolWorker(name=f"w-{number}", busy=number == 2, used=float(number == 2), idle=0.0 if number == 2 else 1e6)
        for number in range(5)
    )
    assert decide(seen(limits, workers=order)).drain == ("w-3", "w-4")
    assert decide(seen(limits, workers=order[:3])).drain == ()
    assert decide(seen(replace(limits, maximum=2), workers=order)).drain == ("w-2", "w-3", "w-4")


# --- beside a slow rule -------------------------------------------------------------------------------------------------


def may_start(pool: SeenPool, number: int) -> bool:
    """What each start must keep to, one rule after the other."""
    limits = pool.limits
    all_of_them = len(pool.workers) + pool.starting + number
    after = pool.starting + sum(not one.leaving for one in pool.workers) + number
    if pool.retry_in > 0 or all_of_them > limits.maximum:
        return False
    if pool.since_drain < limits.cool_down and after > limits.minimum:
        return False
    paid = (
        limits.budget is None
        or not limits.cost
        or all_of_them * limits.cost / 3600 * AHEAD <= limits.budget - pool.spent + 1e-6
    )
    return paid


def wanted(pool: SeenPool) -> int:
    """The least number that serves what waits in time, found by trying."""
    limits = pool.limits
    staying = [one for one in pool.workers if not one.leaving]
    busy = [one for one in staying if one.busy]
    number = len(busy)
    while sum(one.used for one in busy) > number * limits.busy_share + 1e-6:
        number += 1
    if pool.waiting and pool.oldest >= limits.patience:
        late = pool.oldest >= limits.serve_within
        more = 0
        while more < pool.width - 1e-6:
            enough = (more + pool.beside) * limits.serve_within >= pool.backlog - 1e-3
            enough = enough and (more >= pool.widest - 1e-6 or (more == 0 and not late))
            if late and not pool.starting:
                enough = enough and len(busy) + more > len(staying)
            if enough:
                break
            more += 1
        number = max(number, len(busy) + more)
    return min(max(number, limits.minimum), limits.maximum)


amounts = st.integers(0, 12)


@st.composite
def pools(draw) -> SeenPool:
    minimum = draw(st.integers(0, 4))
    limits = PoolLimits(
        minimum=minimum,
        maximum=draw(st.integers(max(minimum, 1), 8)),
        serve_within=draw(st.sampled_from([60.0, 300.0])),
        busy_share=draw(st.sampled_from([1.0, 0.5, 0.75])),
        cost=draw(st.sampled_from([0.0, 1.0, 7.0])),
        budget=draw(st.sampled_from([None, 3.0, 20.0])),
        in_order=draw(st.booleans()),
    )
    here = [
        PoolWorker(
            name=f"w{number}",
            busy=(busy := draw(st.booleans())),
            used=draw(st.sampled_from([0.25, 0.5, 1.0])) if busy else 0.0,
            idle=0.0 if busy else draw(st.sampled_from([0.0, 299.0, 300.0, 5000.0])),
            leaving=draw(st.integers(0, 4)) == 0,
        )
        for number in range(draw(st.integers(0, 10)))
    ]
    waiting = draw(amounts)
    width = waiting * draw(st.sampled_from([0.25, 1.0, 2.0]))
    return SeenPool(
        limits=limits,
        workers=tuple(here),
        starting=draw(st.integers(0, 3)),
        beside=draw(st.sampled_from([0.0, 1.0, 3.5])),
        waiting=waiting,
        backlog=width * draw(st.sampled_from([1.0, 60.0, 301.0, 1000.0])),
        width=width,
        widest=min(width, draw(st.sampled_from([0.25, 1.0, 3.0]))),
        oldest=draw(st.sampled_from([0.0, 11.0, 299.0, 301.0])),
        since_start=draw(st.sampled_from([math.inf, 5.0])),
        since_drain=draw(st.sampled_from([math.inf, 5.0])),
        retry_in=draw(st.sampled_from([0.0, 0.0, 3.0])),
        spent=draw(st.sampled_from([0.0, 2.5, 19.0, 30.0])),
    )


@settings(max_examples=50)
@given(pools())
def test_as_a_slow_rule(pool):
    told = decide(pool)
    limits = pool.limits
    staying = [one for one in pool.workers if not one.leaving]
    here, aim = len(staying) + pool.starting, wanted(pool)
    assert not (told.start and told.drain)
    allowed = [number for number in range(1, aim - here + 1) if may_start(pool, number)]
    assert told.start == max(allowed, default=0)
    by_name = {one.name: one for one in pool.workers}
    drained = [by_name[name] for name in told.drain]
    assert len(set(told.drain)) == len(drained)
    assert not any(one.leaving for one in drained)
    paid = limits.budget is None or not limits.cost
    paid = paid or len(pool.workers) + pool.starting <= (limits.budget - pool.spent) / (limits.cost / 3600 * NOTICE)
    if here <= limits.maximum and paid:
        assert len(staying) - len(drained) >= min(limits.minimum, len(staying))
        assert all(not one.busy and one.idle >= limits.idle for one in drained)
        assert not drained or (here - len(drained) >= aim and pool.since_start >= limits.cool_down)
        free = [one for one in staying if not one.busy and one.idle >= limits.idle and one not in drained]
        if not limits.in_order and pool.since_start >= limits.cool_down:  # none is kept for nothing
            assert not free or here - len(drained) <= aim or len(staying) - len(drained) <= limits.minimum
    elif here > limits.maximum and paid:
        assert len(drained) == min(here - limits.maximum, len(staying))
        idle_left = [one for one in staying if not one.busy and one not in drained]
        assert limits.in_order or not idle_left or not any(one.busy for one in drained)
    if limits.in_order:
        assert [one.name for one in staying[len(staying) - len(drained) :]] == list(told.drain)
