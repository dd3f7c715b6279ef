"""Cutting: nothing is lost, what belongs together stays together, and no cut of neighbours is faster."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.pytest_runs.shards import (
    MAX_SHARDS,
    UNKNOWN,
    Selected,
    cut,
    expected_seconds,
    num_shards,
)

SECONDS = st.floats(0.001, 100)
TESTS = st.lists(
    st.builds(Selected, unit=st.integers(0, 8), needs=st.sampled_from(["plain", "gpu"]), seconds=SECONDS), max_size=40
)


@given(TESTS, st.integers(1, 6))
def test_every_test_is_in_one_shard(tests, number):
    """In order; with those of its unit that need the same, and with no other needs; no more shards than were asked for."""
    shards = cut(tests, {"plain": number, "gpu": number})
    assert sorted(itertools.chain(*shards)) == list(range(len(tests)))
    assert all(shard == sorted(shard) for shard in shards)
    assert all(len({tests[index].needs for index in shard}) == 1 for shard in shards)
    where = {}
    for place, shard in enumerate(shards):
        for index in shard:
            assert where.setdefault((tests[index].unit, tests[index].needs), place) == place
    assert len(shards) <= number * len({test.needs for test in tests})
    assert shards == sorted(shards)


@given(st.lists(SECONDS, min_size=1, max_size=7), st.integers(1, 4))
def test_no_cut_of_neighbours_is_faster(seconds, number):
    """Against all of them."""
    tests = [Selected(unit=index, needs="", seconds=one) for index, one in enumerate(seconds)]
    slowest = max(sum(seconds[index] for index in shard) for shard in cut(tests, {"": number}))
    places = range(1, len(seconds))
    best = min(
        max(sum(seconds[first:last]) for first, last in itertools.pairwise((0, *cuts, len(seconds))))
        for count in range(min(number, len(seconds)))
        for cuts in itertools.combinations(places, count)
    )
    assert slowest == pytest.approx(best, rel=1e-9)


def test_what_is_not_known_takes_as_long_as_the_others():
    assert expected_seconds(["a", "b", "c", "new"], {"a": 1.0, "b": 2.0, "c": 9.0, "gone": 50.0}) == [1, 2, 9, 2]
    assert expected_seconds(["a"], {}) == [UNKNOWN]


@pytest.mark.parametrize(
    ("seconds", "slots", "asked", "number"),
    [
        (0.1, 8, None, 1),  # not worth a second process
        (3.0, 4, None, 4),
        (1000.0, 4, None, 8),
        (1000.0, 4, 3, 3),
        (0.0, 0, None, 1),
        (1e6, 10_000, None, MAX_SHARDS),
    ],
)
def test_number_of_shards(seconds, slots, asked, number):
    assert num_shards(seconds, slots, asked) == number
