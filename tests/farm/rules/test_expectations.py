"""How long a task is expected to take, from others like it."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.expectations import FEW, LATEST, Expectations, Sample, rounded, typical

SECONDS = st.floats(0, 1e7)


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_against_the_standard_library(seconds):
    """Python's upper median of the latest, or the longest of a few."""
    latest = seconds[:LATEST]
    slow = statistics.median_high(latest) if len(latest) >= FEW else max(latest)
    assert typical(seconds) == rounded(slow)


@given(SECONDS)
def test_rounded(seconds):
    assert rounded(seconds) == pytest.approx(seconds, rel=0.05)
    assert rounded(rounded(seconds)) == rounded(seconds)


def test_what_is_no_duration():
    assert typical([]) is None
    assert typical([math.nan, math.inf, -1.0]) is None
    assert typical([math.nan, 5.0]) == 5.0


def sample(name, *seconds, project="p", command=("x",)):
    return Sample(project, name, command, seconds)


def test_the_nearest_that_is_known():
    told = Expectations.of_samples(
        [sample("fit[1]", 10.0, 20.0, 30.0), sample("fit[2]", 70.0), sample("", 5.0, command=("pytest", "-x"))]
    )
    assert told.of("p", "fit[1]", ("y",)) == 20.0
    assert told.of("p", "fit[2]", ("y",)) == 70.0
    assert told.of("p", "fit[3]", ("y",)) == 30.0  # of all its like: 10, 20, 30, 70
    assert told.of("p", "", ("pytest", "-x")) == 5.0
    assert told.of("p", "tests", ("pytest", "-x")) == 5.0
    assert told.of("p", "tests", ("pytest",)) is None
    assert told.of("q", "fit[1]", ("y",)) is None
    assert Expectations().of("p", "fit", ("x",)) is None


@given(st.lists(st.tuples(st.sampled_from(["a", "b[1]", "b[2]", ""]), st.lists(SECONDS, min_size=1, max_size=4))))
def test_never_beyond_what_was_seen(samples):
    told = Expectations.of_samples(sample(name, *seconds) for name, seconds in samples)
    seen = [one for _, seconds in samples for one in seconds]
    for name in ("a", "b[1]", "b[3]", "c"):
        expected = told.of("p", name, ("x",))
        assert (expected is None) == (not seen)
        if expected is not None:
            assert rounded(min(seen)) <= expected <= rounded(max(seen))
