"""Interleaved pairs: how often each verdict is right, what is refused, and that stored samples give the same bits again."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.discoveries import discoveries
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison, Sample, of_process
from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
from dtf_lightning.farm.verdicts.pairs.sentence import sentence
from dtf_lightning.farm.verdicts.pairs.signed_rank import (
    interval,
    lower_tail,
    p_above,
    p_below,
    smallest_p,
    walsh_averages,
)
from dtf_lightning.farm.verdicts.pairs.verdict import ReplayDiffers, State, Verdict, judge, progress

PLAN = Plan()


def differences(random: np.random.Generator, log_ratio: float, sigma: float, num: int = PLAN.max_pairs) -> np.ndarray:
    """Of pairs: half of them with heavy tails."""
    shocks = np.where(random.random(num) < 0.5, random.normal(size=num), random.standard_t(5, num) * math.sqrt(3 / 5))
    return log_ratio + sigma * shocks


def run_trials(trials: int, log_ratio: float, sigma: float, seed: int = 0) -> tuple[Counter, list[int]]:
    random = np.random.default_rng([seed, trials])
    counts, pairs = Counter(), []
    for _ in range(trials):
        ended = progress(differences(random, log_ratio, sigma), PLAN)
        counts[ended.state] += 1
        pairs.append(ended.looks[-1].num_pairs)
    return counts, pairs


def check(trials: int, sigma: float) -> None:
    """Acceptance 3 of the verdicts: noise of a pair 8 to 10 %."""
    same, pairs = run_trials(trials, 0.0, sigma)
    assert (same[State.SLOWER] + same[State.FASTER]) / trials <= 0.02
    assert same[State.SAME] / trials >= 0.9
    assert np.mean(pairs) <= 150
    for change in (1.03, 1 / 1.03):
        edge, _ = run_trials(trials, math.log(change), sigma)
        # Its error is at most 5 %; beside it stands what so few trials may add by chance (3 standard deviations).
        assert edge[State.SAME] / trials <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials) * (trials < 500)
    slower, _ = run_trials(trials, math.log(1.05), sigma)
    assert slower[State.SLOWER] / trials >= 0.95
    assert not slower[State.FASTER]
    much, pairs = run_trials(trials, math.log(1.10), sigma)
    assert much == {State.SLOWER: trials}
    assert np.mean(pairs) <= 40


@pytest.mark.parametrize("sigma", [0.08, 0.10])
def test_verdicts_are_as_right_as_they_say(sigma):
    """80 trials of each case; all 500 are `test_all_trials`."""
    check(80, sigma)


@pytest.mark.chaos
@pytest.mark.parametrize("sigma", [0.08, 0.10])
def test_all_trials(sigma):
    check(500, sigma)


def test_noise_of_90_percent_is_never_the_same():
    """Bimodal and normal noise of 90 %: too noisy, which is told before all pairs are spent."""
    random = np.random.default_rng(3)
    told, pairs = Counter(), []
    for trial in range(80):
        noise = random.normal(0, 0.9, 200)
        if trial % 2:
            noise = np.where(random.random(200) < 0.5, 0.9, -0.9) + random.normal(0, 0.05, 200)
        ended = progress(noise, PLAN)
        told[ended.state] += 1
        pairs.append(ended.looks[-1].num_pairs)
    assert told[State.SAME] == 0
    assert told[State.TOO_NOISY] >= 78
    assert np.mean(pairs) < 150


def test_the_error_is_spent_over_the_looks():
    """Equal programs, looked at eight times: told different in at most 1 of 100, where a level of .01 at each look would err
    more than twice as often. The levels come from a normal approximation; this is how good it is."""
    random = np.random.default_rng(4)
    trials, plan = 1500, Plan(max_pairs=64)
    wrong = naive = 0
    for _ in range(trials):
        noise = random.normal(size=64)
        p_values = []
        for num in plan.looks:
            averages = walsh_averages(noise[:num])
            p_values.append(2 * min(p_above(averages, num, 0), p_below(averages, num, 0)))
        wrong += any(p <= 2 * level for p, level in zip(p_values, plan.difference_levels, strict=True))
        naive += min(p_values) <= 0.01
    assert wrong / trials <= 0.01 + 2 * math.sqrt(0.01 / trials)
    assert naive / trials > 0.02


def test_the_interval_has_the_truth_at_all_looks():
    """With chance 1 - alpha together: the percentage of the sentence."""
    random = np.random.default_rng(5)
    plan, trials, missed = Plan(alpha=0.1, max_pairs=40), 400, 0
    for _ in range(trials):
        noise = 0.2 + random.normal(0, 0.1, 40)
        for num, level in zip(plan.looks, plan.difference_levels, strict=True):
            low, high = interval(walsh_averages(noise[:num]), num, level)
            if not low <= 0.2 <= high:
                missed += 1
                break
    assert 0.02 < missed / trials <= 0.1 + 2 * math.sqrt(0.09 / trials)


def test_signed_rank_against_all_signs():
    """The tail of 8 pairs against all 256 assignments of signs; p-values against scores by ranks."""
    ranks = range(1, 9)
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in itertools.product((0, 1), repeat=8)
    ]
    counted = [sum(total <= w for total in sums) / 256 for w in range(37)]
    assert lower_tail(8) == pytest.approx(counted, abs=1e-15)
    random = np.random.default_rng(6)
    for _ in range(50):
        values = random.normal(0.3, 1, 8)
        order = np.argsort(np.argsort(np.abs(values))) + 1
        positive = int(order[values > 0].sum())
        averages = walsh_averages(values)
        assert p_above(averages, 8, 0) == pytest.approx(sum(total >= positive for total in sums) / 256)
        low, high = interval(averages, 8, 0.05)
        for value in (*averages, low - 1e-9, high + 1e-9):
            kept = p_above(averages, 8, value) > 0.05 and p_below(averages, 8, value) > 0.05
            assert kept == (low <= value <= high)


def test_few_pairs_reach_no_small_p():
    """Six pairs .031, seventeen 1.5e-5, as anybody can count; their interval has no end at smaller levels."""
    assert smallest_p(6) == pytest.approx(0.03125)
    assert smallest_p(17) == pytest.approx(1.53e-5, rel=0.01)
    assert interval(walsh_averages(np.arange(6.0)), 6, 0.01) == (-math.inf, math.inf)


def test_ties_and_zeros_only_make_a_difference_harder_to_see():
    """Coarse clocks give equal values: of pairs without a difference at most as many are told as was said."""
    random = np.random.default_rng(7)
    for step in (0.5, 2.0):
        noise = np.round(random.normal(size=(2000, 10)) / step) * step
        p_values = [p_above(walsh_averages(row), 10, 0) for row in noise]
        for level in (0.05, 0.01, 0.002):
            assert np.mean(np.array(p_values) <= level) <= level + 3 * math.sqrt(level / 2000)


def test_what_is_counted_has_no_noise():
    """Ten equal pairs are the same; ten pairs that all differ by 5 % are slower; by 1 %: the same, at 3 %."""
    for ratio, state in ((0.0, State.SAME), (0.05, State.SLOWER), (-0.05, State.FASTER), (0.01, State.SAME)):
        ended = progress(np.full(10, ratio), PLAN)
        assert (ended.state, ended.looks[-1].num_pairs) == (state, 10)


def test_many_comparisons_at_once():
    """5,000 without a difference and 50 with 10 %: at most 5 % of what is told is false, in the mean of ten farms."""
    tail, shares = lower_tail(24), []
    found = 0
    for seed in range(10):
        random = np.random.default_rng([8, seed])
        pairs = random.normal(0, 0.05, (5050, 24))
        pairs[:50] += 0.1
        ranks = np.argsort(np.argsort(np.abs(pairs), axis=1), axis=1) + 1
        positive = (ranks * (pairs > 0)).sum(axis=1)
        p_values = np.minimum(1, 2 * tail[np.minimum(positive, 300 - positive)])
        told = discoveries(list(p_values), smallest=smallest_p(24))
        assert (told.num_tested, told.warning) == (5050, "")
        flags = np.array(told.told)
        found += flags[:50].sum()
        shares.append(flags[50:].sum() / max(flags.sum(), 1))
    assert np.mean(shares) <= 0.05
    assert found / 500 >= 0.9


def test_a_plan_that_cannot_reach_the_p_value_says_so():
    told = discoveries([0.5] * 4999 + [smallest_p(12)], smallest=smallest_p(12))
    assert not any(told.told)
    assert (
        "one alone is told only at p <= 1e-05, and this plan reaches 0.00049 at best: fewer than 49 differences"
        in told.warning
    )
    assert "fewer than" in discoveries([0.5] * 5000, smallest=PLAN.smallest_p).warning


# --- samples ----------------------------------------------------------------------------------------------------------


def comparison(ratio: float = 1.0, num: int = 10, *, sigma: float = 0.001, unit: str = "ms", **fields) -> Comparison:
    random = np.random.default_rng(9)
    samples = []
    for pair in range(num):
        first = first_of_pair("seed", pair)
        for side in (first, Side.CANDIDATE if first is Side.BASE else Side.BASE):
            value = 20 * (ratio if side is Side.CANDIDATE else 1) * math.exp(random.normal(0, sigma))
            samples.append(Sample(pair=pair, side=side, process=f"{pair}-{side.value}", value=value))
    given = {"metric": "time", "unit": unit, "higher_is_better": False, "plan": PLAN, "seed": "seed", **fields}
    return Comparison(samples=tuple(samples), **given)


def test_order_is_drawn_and_must_be_kept():
    """Both orders come; samples in another order, or without a seed, are refused."""
    drawn = Counter(first_of_pair("seed", pair) for pair in range(200))
    assert min(drawn.values()) > 70
    made = comparison()
    swapped = (made.samples[1], made.samples[0], *made.samples[2:])
    with pytest.raises(
        SettingsError,
        match=r"pair 1 of 'time' ran the .* first, and the order that was drawn says.*random order is refused",
    ):
        dataclasses.replace(made, samples=swapped)
    with pytest.raises(SettingsError, match="has no seed: which program goes first in a pair must be drawn at random"):
        dataclasses.replace(made, seed="")
    with pytest.raises(SettingsError, match="are not base and candidate of pair 1"):
        dataclasses.replace(made, samples=made.samples[2:])
    with pytest.raises(SettingsError, match="the last pair of 'time' has one sample"):
        dataclasses.replace(made, samples=made.samples[:-1])


def test_samples_of_one_process_are_not_independent():
    """They cannot be given as samples; the median of a process can."""
    made = comparison()
    again = dataclasses.replace(made.samples[2], process=made.samples[0].process)
    with pytest.raises(SettingsError, match=r"pairs 1 and 2 of 'time' both have a sample of the process .*alike"):
        dataclasses.replace(made, samples=(*made.samples[:2], again, *made.samples[3:]))
    assert of_process([1.0, 100.0, 2.0], "time") == pytest.approx(2.0)
    assert of_process([4.0], "time") == 4.0
    with pytest.raises(SettingsError, match="a process measured nothing for the metric 'time'"):
        of_process([], "time")
    with pytest.raises(SettingsError, match="is nan"):
        of_process([1.0, math.nan], "time")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"unit": ""}, "has no unit"), ({"unit": "parsec"}, "unknown unit")],
)
def test_bad_comparisons_are_refused(fields, message):
    with pytest.raises(SettingsError, match=message):
        comparison(**fields)
    for value in (0.0, math.nan, math.inf, -1.0):
        made = comparison()
        bad = dataclasses.replace(made.samples[0], value=value)
        with pytest.raises(SettingsError, match="of the metric 'time' is"):
            dataclasses.replace(made, samples=(bad, *made.samples[1:]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"delta": 0}, "smallest change that matters is 0"),
        ({"alpha": 0}, "alpha is 0"),
        ({"confidence": 95}, "confidence is 95"),
        ({"max_pairs": 9}, "9 pairs are asked for; expected 10"),
        ({"alpha": 1e-6, "max_pairs": 16}, "16 pairs can decide nothing at alpha 1e-06"),
        ({"confidence": 0.9999, "max_pairs": 10}, r"10 pairs can decide nothing at .* confidence 0.9999"),
    ],
)
def test_plans_that_cannot_be(fields, message):
    with pytest.raises(SettingsError, match=message):
        Plan(**fields)


def test_looks_of_short_and_long_plans():
    """The last look is where the plan ends; levels are there for each."""
    assert Plan(max_pairs=10).looks == (10,)
    assert Plan(max_pairs=50).looks == (10, 16, 25, 40, 50)
    assert Plan(max_pairs=500).looks[-3:] == (280, 392, 500)
    for pairs in (10, 50, 500):
        plan = Plan(max_pairs=pairs)
        assert len(plan.difference_levels) == len(plan.equivalence_levels) == len(plan.shares) == len(plan.looks)
        assert all(0 < level < plan.alpha for level in plan.difference_levels)
    assert Plan(alpha=0.0001).difference_levels[0] == 0  # ten pairs cannot reach it
    assert Plan(alpha=0.0001).difference_levels[1] > 0


def test_sentences():
    """One each; their percentages are the plan's."""
    slower = comparison(1.05)
    assert sentence(slower, judge(slower), 41) == (
        "time: slower by 5.0 % (between 4.7 % and 5.4 %; 99 % sure); 10 pairs, 41 s, on one device"
    )
    faster = comparison(0.5)
    assert "time: faster by 50.0 % (between 49.8 % and 50.1 %; 99 % sure)" in sentence(faster, judge(faster))
    rate = comparison(0.5, unit="1/s", higher_is_better=True)
    assert "time: slower by 100.0 %" in sentence(rate, judge(rate))
    size = comparison(1.2, unit="MiB")
    assert "time: worse by 20.0 %" in sentence(size, judge(size))
    same = comparison(1.0)
    assert "time: the same: no change of 3 % or more (95 % sure); between 0.27 % faster and 0.27 % slower" in sentence(
        same, judge(same)
    )
    few = comparison(num=4)
    assert sentence(few, judge(few, ended="the budget of 60 s is spent")) == (
        "time: could not tell: the budget of 60 s is spent; 4 pairs, on one device"
    )
    undecided = comparison(num=10, sigma=0.1)
    verdict = judge(undecided, ended="Ctrl-C")
    assert (verdict.state, verdict.reason) == (State.GAVE_UP, "Ctrl-C")
    assert "could not tell: Ctrl-C; with up to 200 pairs it would be decided with a chance of" in sentence(
        undecided, verdict
    )
    noisy = comparison(num=200, sigma=0.9)
    assert "time: too noisy: pairs differ by" in sentence(noisy, judge(noisy))


def test_a_small_difference_that_is_seen_is_told_as_small():
    """1.5 % in noise of 1.5 %, with a plan that cannot tell it from 1 %."""
    plan = Plan(delta=0.015, max_pairs=64)
    made = dataclasses.replace(comparison(1.0145, num=64, sigma=0.012), plan=plan)
    verdict = judge(made)
    assert verdict.state is State.SLOWER
    assert verdict.look.estimate < math.log1p(0.015)
    assert "which may be less than the 1.5 % that matter" in sentence(made, verdict)


@pytest.mark.parametrize("sigma", [0.001, 0.1, 0.9])
def test_replay_is_bit_for_bit(sigma):
    """Through JSON and back; a changed sample and a changed number are noticed."""
    made = comparison(1.04, num=200, sigma=sigma)
    verdict = judge(made, ended="Ctrl-C")
    stored = json.loads(json.dumps([made.to_json(), verdict.to_json()], allow_nan=False))
    assert Comparison.from_json(stored[0]) == made
    assert Verdict.replay(*stored) == verdict
    stored[0]["samples"][3][3] = math.nextafter(stored[0]["samples"][3][3], 1e9) * 1.5
    with pytest.raises(ReplayDiffers, match=r"the samples give look = .* were changed after it was made"):
        Verdict.replay(*stored)
    with pytest.raises(SettingsError, match="the verdict was made by 'signed rank, 0'"):
        Verdict.replay(made.to_json(), {**verdict.to_json(), "method": "signed rank, 0"})
    with pytest.raises(SettingsError, match="what was stored is no comparison"):
        Verdict.replay({"metric": "time"}, verdict.to_json())
