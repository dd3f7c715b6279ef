"""The scheduler decides what its slow and obvious reference decides, whatever happens, one decision after the other."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES
from support.farm.reference_scheduler import ReferenceScheduler
from support.farm.scheduling import check_invariants, happenings, perform

SETTINGS = SchedulerSettings(age=3.0, reserve_after=2.0, starve_after=6.0, overtaken=2, max_reservations=2)
"""Short enough for a story of some thirty steps."""


def tell_both(strategy, steps):
    real = ShapeScheduler(STRATEGIES[strategy](), SETTINGS)
    slow = ReferenceScheduler(STRATEGIES[strategy](), SETTINGS)
    now = 1000.0
    for step in steps:
        real_answer, now_after = perform(real, step, now)
        slow_answer, _ = perform(slow, step, now)
        assert real_answer == slow_answer, step
        now = now_after
        check_invariants(real)
    return real, slow


@pytest.mark.parametrize("strategy", STRATEGIES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(happenings(), max_size=60))
def test_decides_as_the_reference_does(strategy, steps):
    """Tasks of all kinds, workers, licences and weights come, change and go; decisions are confirmed, refused, adopted."""
    tell_both(strategy, steps)
