"""The scheduler decides what its slow and obvious reference decides, whatever happens, one decision after the other."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES
from support.farm.reference_scheduler import ReferenceScheduler
from support.farm.scheduling import check_invariants, happenings, long_story, perform

SETTINGS = SchedulerSettings(age=3.0, reserve_after=2.0, starve_after=6.0, overtaken=2, max_reservations=2)
"""Short enough for a story of some thirty steps."""


def tell_both(strategy, steps):
    """Returns the real one, and how many reservations it held at a time, summed over all steps."""
    real = ShapeScheduler(STRATEGIES[strategy](), SETTINGS)
    slow = ReferenceScheduler(STRATEGIES[strategy](), SETTINGS)
    now, held = 1000.0, 0
    for step in steps:
        real_answer, now_after = perform(real, step, now)
        slow_answer, _ = perform(slow, step, now)
        assert real_answer == slow_answer, step
        now = now_after
        check_invariants(real)
        held += len(real.reservations)
    return real, held


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(strategy=st.sampled_from(sorted(STRATEGIES)), steps=st.lists(happenings(), max_size=50))
def test_decides_as_the_reference_does(strategy, steps):
    """Tasks of all kinds, workers, licences and weights come, change and go; decisions are confirmed, refused, adopted."""
    tell_both(strategy, steps)


@pytest.mark.parametrize(("seed", "strategy"), list(enumerate(sorted(STRATEGIES))))
def test_in_a_busy_farm(seed, strategy):
    """Long enough for queues to be overtaken and helped."""
    _, held = tell_both(strategy, long_story(seed, 250))
    assert held > 10


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10, 130))
def test_in_a_busy_farm_for_long(seed):
    strategy = sorted(STRATEGIES)[seed % len(STRATEGIES)]
    tell_both(strategy, long_story(seed, 500))
