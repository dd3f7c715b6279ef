"""A pool over random arrivals: what holds at every look, and at the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.scaling.decision import NOTICE
from dtf_lightning.farm.rules.scaling.observation import PoolLimits
from dtf_lightning.farm.testkit.pools import DAY, PlayedTask, PoolSimulation

LIMITS = PoolLimits(maximum=5, serve_within=120.0, patience=10.0, idle=180.0, cool_down=90.0)
arrivals = st.lists(
    st.builds(
        PlayedTask,
        at=st.integers(0, 1000).map(float),
        seconds=st.sampled_from([1.0, 20.0, 100.0, 400.0]),
        expected=st.sampled_from([None, None, 1.0, 60.0, 1000.0]),
    ),
    max_size=16,
)


class Watched:
    """Holds each look to the rules."""

    def __init__(self) -> None:
        self.started = self.drained = -1e9

    def __call__(self, now, seen, decision) -> None:
        limits = seen.limits
        all_of_them = len(seen.workers) + seen.starting
        assert all_of_them + decision.start <= limits.maximum
        staying = {one.name: one for one in seen.workers if not one.leaving}
        assert len(staying) + seen.starting + decision.start - len(decision.drain) >= limits.minimum
        for name in decision.drain:
            assert not staying[name].busy
            assert staying[name].idle >= limits.idle
        if decision.drain:
            assert now - self.started >= limits.cool_down
            self.drained = now
        if decision.start:
            assert now - self.drained >= limits.cool_down or len(staying) + seen.starting < limits.minimum
            self.started = now


@settings(max_examples=15)
@given(tasks=arrivals, minimum=st.integers(0, 3), delay=st.sampled_from([0.0, 45.0, 200.0]))
def test_it_holds_whatever_arrives(tasks, minimum, delay):
    """Never below the minimum, never above the maximum, no flapping, only who is idle goes; all is served, and then it is as small
    as it may be."""
    limits = replace(LIMITS, minimum=minimum)
    played = PoolSimulation(tasks, lambda _: limits, start_delay=delay, interval=20.0, watch=Watched())
    total = sum(task.seconds for task in tasks)
    told = played.run(1000.0 + total + len(tasks) * (limits.serve_within + delay) + 1000.0)
    assert (told.left, len(told.waits)) == (0, len(tasks))
    assert told.busy_seconds == pytest.approx(total)
    assert told.series[-1][1] == minimum


@settings(max_examples=15)
@given(tasks=arrivals, budget=st.sampled_from([0.0, 900.0, 4000.0, 9000.0]))
def test_the_budget_is_not_exceeded(tasks, budget):
    """One worker costs 1 a second. Tasks that end within the notice cost no more than the budget."""
    assert all(task.seconds <= NOTICE for task in tasks)
    limits = replace(LIMITS, cost=3600.0, budget=budget)
    told = PoolSimulation(tasks, lambda _: limits, start_delay=30.0, interval=20.0).run(DAY / 20)
    assert told.spent[0] <= budget + 1e-6


def test_a_pool_by_the_clock():
    """Capacity that is scheduled is there before anything waits, and goes after it."""
    day, night = replace(LIMITS, minimum=3), LIMITS
    played = PoolSimulation([], lambda at: day if 1000 <= at < 5000 else night, start_delay=60.0, interval=10.0)
    series = {at: workers for at, workers, _ in played.run(6000.0).series}
    assert (series[990.0], series[1010.0], series[4990.0], series[5990.0]) == (0, 3, 3, 0)
