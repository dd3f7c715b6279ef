"""Shards and workers: one owner each, balance within one shard, the least moves, the same on every rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.data.redistribution import GONE, MODES, carry_over, contiguous_ranges, plan
from dtf_lightning.errors import SettingsError


@st.composite
def worlds(draw, most_shards=60, most_workers=9):
    """A number of workers and what they hold, however unbalanced, with orphans."""
    workers = draw(st.integers(1, most_workers))
    return workers, draw(st.lists(st.integers(GONE, workers - 1), max_size=most_shards))


def test_ranges_of_100_over_3():
    assert contiguous_ranges(100, 3) == [(0, 34), (34, 67), (67, 100)]


@given(length=st.integers(0, 1000), workers=st.integers(1, 50))
def test_ranges_cover_all_once_and_evenly(length, workers):
    ranges = contiguous_ranges(length, workers)
    assert [index for begin, end in ranges for index in range(begin, end)] == list(range(length))
    sizes = [end - begin for begin, end in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


@given(world=worlds(), mode=st.sampled_from(MODES))
def test_balanced_and_owned_once(world, mode):
    """Every shard is in exactly one worker's list; no two lists differ by more than one; the plan is deterministic."""
    workers, before = world
    made = plan(len(before), workers, before=before, mode=mode)
    lists = [made.shards_of(rank) for rank in range(workers)]
    assert sorted(itertools.chain(*lists)) == list(range(len(before)))
    assert max(map(len, lists)) - min(map(len, lists)) <= 1
    assert [(s, before[s], int(made.owners[s])) for s in range(len(before)) if before[s] != made.owners[s]] == (
        made.transfers()
    )
    assert made.cost == len(made.moved)
    assert (plan(len(before), workers, before=before, mode=mode).owners == made.owners).all()


@given(world=worlds(most_shards=6, most_workers=3))
def test_incremental_moves_the_least(world):
    """Against all assignments that are balanced within one shard."""
    workers, before = world

    def balanced(owners):
        counts = [owners.count(rank) for rank in range(workers)]
        return max(counts) - min(counts) <= 1

    everything = itertools.product(range(workers), repeat=len(before))
    least = min(sum(a != b for a, b in zip(owners, before, strict=True)) for owners in everything if balanced(owners))
    assert len(plan(len(before), workers, before=before).moved) == least


@given(data=st.data(), world=worlds(), mode=st.sampled_from(MODES))
def test_weighted(data, world, mode):
    """No two workers differ by more than the heaviest shard."""
    workers, before = world
    weights = data.draw(st.lists(st.floats(0.1, 50), min_size=len(before), max_size=len(before)))
    made = plan(len(before), workers, before=before, mode=mode, weights=weights)
    assert made.loads.max() - made.loads.min() <= max(weights, default=0) * (1 + 1e-9)
    assert made.cost == pytest.approx(sum(weights[shard] for shard, *_ in made.transfers()))


def test_balanced_world_moves_nothing():
    made = plan(7, 3, before=[2, 0, 1, 2, 0, 1, 1])
    assert made.transfers() == []
    assert plan(4, 2, before=[0, 1, 1, 0], weights=[1, 2, 2, 3]).cost == 0


def test_joiner_takes_its_share_and_survivors_keep_theirs():
    """12 shards, 2 -> 3 workers: four move, two from each."""
    made = plan(12, 3, before=[0] * 6 + [1] * 6)
    assert made.transfers() == [(4, 0, 2), (5, 0, 2), (10, 1, 2), (11, 1, 2)]


def test_leavers_shards_are_all_that_moves():
    """Rank 1 of three leaves, rank 2 becomes rank 1."""
    before = carry_over([0, 1, 2] * 4, {0: 0, 2: 1})
    made = plan(12, 2, before=before)
    assert [(shard, old) for shard, old, _ in made.transfers()] == [(1, GONE), (4, GONE), (7, GONE), (10, GONE)]


def test_carry_over_with_ranks_that_held_nothing():
    assert carry_over([], {3: 0}).tolist() == []
    assert carry_over([0, GONE], {5: 1, 0: 0}).tolist() == [0, GONE]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_million_shards_and_a_thousand_workers(weighted):
    """Afresh, and for a joiner, who gets its share and hardly anybody else anything; `benchmarks/redistribution.py` times it."""
    weights = np.random.default_rng(0).uniform(1, 2, 1_000_000) if weighted else None
    first = plan(1_000_000, 999, mode="full", weights=weights)
    made = plan(1_000_000, 1000, before=first.owners, weights=weights)
    assert 0 < len(made.moved) <= 1010


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "at least one worker"),
        ({"mode": "lazy"}, "'lazy' is unknown; choose one of 'full', 'incremental'"),
        ({"before": [0]}, r"before has the shape \(1,\), expected one entry for each of 2 shards"),
        ({"before": [0, 2]}, "before has ranks from 0 to 2; expected -1 to 1"),
        ({"weights": [1, 2, 3]}, r"weights has the shape \(3,\)"),
        ({"weights": [1, 0]}, "finite numbers above 0"),
        ({"weights": [1, float("nan")]}, "finite numbers above 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(SettingsError, match=message):
        plan(**{"num_shards": 2, "num_workers": 2, **arguments})


def test_no_workers_to_divide_among():
    with pytest.raises(SettingsError, match="cannot divide 5 among 0 workers"):
        contiguous_ranges(5, 0)
