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
    assert told.of("p", "fit[1]", ("y",)).seconds == 20.0
    assert told.of("p", "fit[2]", ("y",)).seconds == 70.0
    assert told.of("p", "fit[3]", ("y",)).seconds == 30.0  # of all its like: 10, 20, 30, 70
    assert told.of("p", "", ("pytest", "-x")).seconds == 5.0
    assert told.of("p", "tests", ("pytest", "-x")).seconds == 5.0
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
            assert rounded(min(seen)) <= expected.seconds <= rounded(max(seen))


RUNS = st.lists(st.tuples(SECONDS, st.sampled_from(["a1", "a2", "b1", "gone", ""])), min_size=1, max_size=30)
CLASSES = {"a1": "gpu", "a2": "gpu", "b1": "cpu"}


@given(RUNS)
def test_by_device_class(runs):
    """A class of which enough is known has its own median; elsewhere what is known of the kind alone counts."""
    seconds, workers = zip(*runs, strict=True)
    told = Expectations.of_samples([Sample("p", "fit", ("x",), seconds, workers)], CLASSES).of("p", "fit", ("x",))
    assert told.seconds == typical(seconds)
    for device in ("gpu", "cpu"):
        there = [one for one, worker in runs if CLASSES.get(worker) == device]
        if len(there) < FEW or not typical(there) or not told.seconds:
            assert device not in told.speeds
        else:
            assert told.speeds[device] == rounded(told.seconds / typical(there))
    assert told.speeds.keys() <= {"gpu", "cpu"}


def test_the_speed_of_a_class():
    slow = [Sample("p", "fit", ("x",), (40.0,) * 3 + (10.0,) * 2, ("b1",) * 3 + ("a1",) * 2)]
    assert Expectations.of_samples(slow, CLASSES).of("p", "fit", ()).speeds == {"cpu": 1.0}
    fast = [Sample("p", "fit", ("x",), (40.0,) * 3 + (10.0,) * 3, ("b1",) * 3 + ("a1", "a2", "a1"))]
    told = Expectations.of_samples(fast, CLASSES).of("p", "fit", ())
    assert (told.seconds, told.speeds) == (40.0, {"cpu": 1.0, "gpu": 4.0})
