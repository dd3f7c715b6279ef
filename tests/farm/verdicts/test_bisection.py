"""The noisy bisection: against Bayes' rule written out, and in simulation against plain binary search with repeats."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.bisection import (
    FAILURES,
    MAX_BATCH,
    SURE,
    VOTES,
    Bisection,
    Found,
    weight_of,
)

COMMITS = 24


def chances_by_hand(bisection):
    """Every hypothesis, with the chance of all answers under it, multiplied out one by one."""
    weights = {}
    rates = bisection.rates
    share = sum(weight for *_, weight in rates.pairs)
    for culprit in range(1, bisection.bad + 1):
        for low, high, weight in rates.pairs:
            chance = (1 - rates.none) * bisection.weights[culprit - 1] / sum(bisection.weights) * weight / share
            for at in range(bisection.bad + 1):
                rate = high if at >= culprit else low
                chance *= rate ** bisection.failed.get(at, 0) * (1 - rate) ** bisection.passed.get(at, 0)
            weights[culprit] = weights.get(culprit, 0.0) + chance
    alone = sum(weight for _, weight in rates.alone)
    failed, passed = sum(bisection.failed.values()), sum(bisection.passed.values())
    weights[0] = sum(rates.none * weight / alone * rate**failed * (1 - rate) ** passed for rate, weight in rates.alone)
    return {culprit: weight / sum(weights.values()) for culprit, weight in weights.items()}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("rates", [FAILURES, VOTES])
def test_chances_are_those_of_bayes_rule(seed, rates):
    """With any weights, answers and skipped commits, which have the chance of the next one that can be tested."""
    world = random.Random(seed)
    number = world.randint(1, 7)
    bisection = Bisection(weights=tuple(world.uniform(0.1, 2) for _ in range(number)), rates=rates)
    skipped = {at for at in range(1, number) if world.random() < 0.3}
    for at in skipped:
        bisection = bisection.skip(at)
    for _ in range(world.randint(0, 12)):
        at = world.choice([at for at in range(number + 1) if at not in skipped])
        bisection = bisection.seen(at, failed=world.random() < 0.5)
    by_hand, posterior = chances_by_hand(bisection), bisection.posterior()
    assert posterior.none == pytest.approx(by_hand[0])
    assert sorted(at for group in posterior.groups for at in group) == list(range(1, number + 1))
    for group, chance in zip(posterior.groups, posterior.chances, strict=True):
        assert group[-1] not in skipped
        assert skipped.issuperset(group[:-1])
        assert chance == pytest.approx(sum(by_hand[at] for at in group))


def gain_by_hand(bisection, places):
    """Bits about the culprit that these tests together tell, over all of their outcomes."""
    posterior = bisection.posterior()
    columns = [0, *(group[-1] for group in posterior.groups)]
    table = posterior.table()
    chances = np.append(posterior.chances, posterior.none)

    def bits(shares):
        return -sum(share * math.log2(share) for share in shares if share > 0)

    left = 0.0
    for outcome in itertools.product([True, False], repeat=len(places)):
        joint = chances.copy()
        for place, failed in zip(places, outcome, strict=True):
            column = table[:, columns.index(place)]
            joint *= column if failed else 1 - column
        left += joint.sum() * bits(joint / joint.sum())
    return bits(chances) - left


@pytest.mark.parametrize("seed", range(6))
def test_the_next_test_tells_the_most(seed):
    """Of all places; and each one of a batch, beside those before it."""
    world = random.Random(seed)
    bisection = Bisection(weights=(1.0,) * 6).seen(6, failed=True).seen(0, failed=False)
    for _ in range(seed):
        bisection = bisection.seen(world.randint(0, 6), failed=world.random() < 0.4)
    batch = bisection.next_tests(3)
    assert len(batch) == 3
    for number in range(3):
        best = max(gain_by_hand(bisection, [*batch[:number], place]) for place in range(7))
        assert gain_by_hand(bisection, batch[: number + 1]) == pytest.approx(best, abs=1e-9)


def find(seed, low, high, *, commits=COMMITS, batch=MAX_BATCH, rates=FAILURES, max_runs=600):
    """One bisection in a world of these rates: whether the culprit was found, and by how many runs."""
    world = random.Random(seed)
    culprit = world.randint(1, commits)
    bisection = Bisection(weights=(1.0,) * commits, rates=rates)
    while (found := bisection.verdict()) is None and bisection.num_runs < max_runs:
        for at in bisection.next_tests(batch):
            bisection = bisection.seen(at, failed=world.random() < (high if at >= culprit else low))
    return found, culprit, bisection.num_runs


def plain(seed, high, repeats):
    """`git bisect run`, each commit tried until it fails, so many times at most."""
    world = random.Random(seed)
    culprit, runs, good, bad = world.randint(1, COMMITS), 0, 0, COMMITS
    while bad - good > 1:
        middle, failed = (good + bad) // 2, False
        for _ in range(repeats):
            runs += 1
            failed = world.random() < (high if middle >= culprit else 0)
            if failed:
                break
        good, bad = (good, middle) if failed else (middle, bad)
    return bad == culprit, runs


def right_of(results):
    return sum(found is not None and found.commits == (culprit,) for found, culprit, _ in results) / len(results)


def mean_runs(results):
    return sum(runs for *_, runs in results) / len(results)


@pytest.mark.parametrize(
    ("high", "batch", "trials", "most"),
    [(1.0, 1, 60, 13), (1.0, 6, 60, 19), (0.8, 6, 60, 29), (0.5, 6, 60, 45), (0.2, 6, 40, 125)],
)
def test_the_culprit_is_found(high, batch, trials, most):
    """At least 95 % right at failure rates from 20 to 100 %; `most`: runs in the mean."""
    results = [find(seed, 0.0, high, batch=batch) for seed in range(trials)]
    assert right_of(results) >= 0.95
    assert mean_runs(results) <= most


@pytest.mark.parametrize(("wrong", "trials"), [(0.02, 60), (0.15, 60)])
def test_the_step_in_timings_is_found(wrong, trials):
    """Each comparison says the opposite so often."""
    results = [find(seed, wrong, 1 - wrong, rates=VOTES) for seed in range(trials)]
    assert right_of(results) >= 0.95


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("low", "high"), [(0, 1.0), (0, 0.8), (0, 0.5), (0, 0.3), (0, 0.2), (0.05, 0.8), (0.05, 0.5), (0.05, 0.3)]
)
def test_all_trials(low, high):
    """400 bisections each, also of a test that is flaky before the culprit. A plain search that is 95 % right where one run of five
    fails, which it must know, makes more runs where failures are not seldom."""
    results = [find(seed, low, high, batch=4) for seed in range(400)]
    assert right_of(results) >= (0.95 if low < high / 10 else 0.93)
    if not low and high >= 0.5:
        assert mean_runs(results) < sum(plain(seed, high, 17)[1] for seed in range(1000)) / 1000
    if high == 0.2:
        assert sum(plain(seed, high, 16)[0] for seed in range(1000)) < 0.96 * 1000


def test_one_commit_only():
    """It is not told before both ends were tested."""
    bisection = Bisection(weights=(1.0,))
    assert bisection.verdict(0.6) is None
    assert bisection.next_tests(2) == [1, 0]
    found, culprit, _ = find(1, 0.0, 1.0, commits=1)
    assert (found.commits, culprit) == ((1,), 1)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_there_is_no_culprit(rate):
    """The good commit fails as the bad one does, or the bad one passes as the good one does."""
    results = [find(seed, rate, rate)[0] for seed in range(30)]
    assert sum(found is not None and found.commits == () for found in results) >= 27


def test_what_cannot_be_tested():
    """Commits beside each other that cannot be built are told together with the next one."""
    bisection = Bisection(weights=(1.0,) * 5).skip(2).skip(3)
    assert bisection.groups == [(1,), (2, 3, 4), (5,)]
    for _ in range(12):
        for at in bisection.next_tests(2):
            assert at not in (2, 3)
            bisection = bisection.seen(at, failed=at >= 4)
    assert bisection.verdict().commits == (2, 3, 4)
    for end in (0, 5):
        with pytest.raises(SettingsError, match="commit cannot be tested: name another one"):
            bisection.skip(end)


def test_what_is_known_beforehand_counts():
    """A commit that changes only text is tested around, and needs more evidence."""
    assert weight_of(["requirements.txt"]) == 1
    assert weight_of(["docs/a.rst", "README.md"]) < weight_of(["docs/a.rst", "src/a.py"]) == weight_of([]) == 1
    chances = []
    for weights in ((1.0,) * 4, (1.0, 0.1, 1.0, 1.0)):
        bisection = Bisection(weights=weights)
        for at, failed in ((0, False), (4, True), (1, False), (2, True)):
            bisection = bisection.seen(at, failed=failed)
        chances.append(bisection.posterior().chances[1])
    assert chances[1] < chances[0]
    for wrong in ((), (1.0, 0.0), (math.nan,)):
        with pytest.raises(SettingsError, match="each with a weight above 0"):
            Bisection(weights=wrong)


def test_candidates_are_the_likeliest():
    bisection = Bisection(weights=(1.0,) * 8).seen(8, failed=True).seen(0, failed=False).seen(4, failed=True)
    told = bisection.posterior().candidates(0.9)
    assert [chance for _, chance in told] == sorted((chance for _, chance in told), reverse=True)
    assert {at for group, _ in told for at in group} >= {1, 2, 3, 4}
    assert bisection.verdict(SURE) is None
    assert Found(commits=(1,), chance=0.99) != bisection.verdict(0.2)
