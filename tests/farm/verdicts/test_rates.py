"""The interval of a rate, against sums over all outcomes."""

from __future__ import annotations

from math import comb

import pytest

from dtf_lightning.farm.verdicts.rates import interval


@pytest.mark.parametrize("runs", [1, 4, 11])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_has_the_true_rate_as_often_as_it_says(runs, confidence):
    """Whatever the rate is, over all that `runs` runs may give, each weighed by its chance."""
    intervals = [interval(happened, runs, confidence) for happened in range(runs + 1)]
    for rate in [number / 50 for number in range(51)]:
        held = sum(
            comb(runs, happened) * rate**happened * (1 - rate) ** (runs - happened)
            for happened, (low, high) in enumerate(intervals)
            if low <= rate <= high
        )
        assert held >= confidence - 1e-9


def test_what_is_known_of_it():
    """Clopper and Pearson's own figures (Biometrika 26, 1934) for 3 of 10, and the rule of three."""
    assert interval(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert interval(0, 100)[1] == pytest.approx(3.7 / 100, rel=0.03)
    assert interval(0, 5)[0] == 0
    assert interval(5, 5)[1] == 1
    assert interval(0, 0) == (0, 1)
