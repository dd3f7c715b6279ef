"""Blame in simulation: 1,500 failures of each cause, under the model's own numbers and under others."""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.blame import (
    PRIOR,
    RERUNS,
    UNCHANGED,
    Blame,
    Cause,
    Past,
    Rerun,
    Seen,
    blame,
    next_rerun,
)

FAILURES = 1500


@functools.cache
def choice(seen: tuple[Seen, ...]) -> Rerun | None:
    return next_rerun(seen)


@functools.cache
def found(seen: tuple[Seen, ...]) -> Blame:
    return blame(seen)


def chances(cause: Cause, world: random.Random, *, as_modelled: bool):
    """How often a test with this fault fails, by the kind of rerun; rates are drawn for each failure."""
    always = 0.98 if as_modelled else world.uniform(0.93, 1.0)
    match cause:
        case Cause.CODE:
            return lambda rerun: 0.005 if rerun.on_base else always
        case Cause.FLAKE:
            rate = world.betavariate(2, 9)
            return lambda rerun: rate
        case Cause.WORKER:
            sick = world.choices([0.98, 0.9, 0.75], [0.6, 0.25, 0.15])[0] if as_modelled else world.uniform(0.8, 1)
            return lambda rerun: 0.005 if rerun.elsewhere else sick
        case Cause.ENVIRONMENT:
            return lambda rerun: always


def investigate(cause: Cause, seed: int, *, as_modelled: bool) -> tuple[Counter, float]:
    world, causes, reruns = random.Random(seed), Counter(), 0
    for _ in range(FAILURES):
        chance = chances(cause, world, as_modelled=as_modelled)
        seen: tuple[Seen, ...] = ()
        while (rerun := choice(seen)) is not None:
            seen = (*seen, Seen(rerun=rerun, failed=world.random() < chance(rerun)))
            seen = tuple(sorted(seen, key=lambda one: (one.rerun, one.failed)))  # the order tells nothing
        causes[found(seen).cause] += 1
        reruns += len(seen)
    return causes, reruns / FAILURES


@pytest.mark.parametrize("seed", [1, 1001], ids=["tuned", "held out"])
@pytest.mark.parametrize("as_modelled", [True, False], ids=["as modelled", "otherwise"])
def test_each_cause_is_found(seed, as_modelled):
    """At least 90 % of each right, code called a flake in at most 2 %, with at most 4.5 reruns in the mean."""
    means = []
    for cause in Cause:
        causes, mean = investigate(cause, seed, as_modelled=as_modelled)
        assert causes[cause] / FAILURES >= 0.9, (cause, causes)
        if cause is Cause.CODE:
            assert causes[Cause.FLAKE] / FAILURES <= 0.02
        means.append(mean)
    assert sum(means) / len(means) <= 4.5


def test_the_common_rule_blames_wrongly():
    """Three reruns wherever there is room, flaky if one passes, code if none: sick workers are called flaky, and changed
    environments code."""
    world = random.Random(2)
    told = {cause: Counter() for cause in Cause}
    for cause in Cause:
        for _ in range(FAILURES):
            chance = chances(cause, world, as_modelled=True)
            reruns = [Rerun(on_base=False, elsewhere=world.random() < 0.5) for _ in range(3)]
            passed = any(world.random() >= chance(rerun) for rerun in reruns)
            told[cause][Cause.FLAKE if passed else Cause.CODE] += 1
    assert told[Cause.WORKER][Cause.FLAKE] / FAILURES > 0.8
    assert told[Cause.ENVIRONMENT][Cause.CODE] / FAILURES > 0.8


def test_the_first_failure_is_not_counted():
    """The chances before any rerun are the prior's: it is given that the test has failed."""
    assert blame().chances == pytest.approx(PRIOR)
    assert blame().cause is None
    assert blame().sentence.startswith(
        "not sure: perhaps the candidate's code (25.0 %): it was not run again (0 reruns)"
    )


def test_no_rerun_without_another_worker():
    """Then none is proposed, and worker and environment cannot be told apart: nobody is blamed."""
    here = {rerun: 1.0 for rerun in RERUNS if not rerun.elsewhere}
    seen: list[Seen] = []
    while (rerun := next_rerun(seen, costs=here)) is not None:
        assert not rerun.elsewhere
        seen.append(Seen(rerun=rerun, failed=True))
    ended = blame(seen)
    assert ended.cause is None
    assert ended.likeliest in (Cause.WORKER, Cause.ENVIRONMENT)


def test_the_budget_is_kept_and_what_is_cheap_is_preferred():
    costs = {rerun: 10.0 if rerun.on_base else 1.0 for rerun in RERUNS}
    first = next_rerun(costs=costs)
    assert first is not None
    assert not first.on_base
    assert next_rerun(costs=costs, budget=0.5) is None
    flaky = [Seen(rerun=first, failed=False)]
    assert next_rerun(flaky, costs=costs, budget=1.5) is None
    with pytest.raises(SettingsError, match="the cost of a rerun must be more than 0"):
        next_rerun(costs={RERUNS[0]: 0.0})


def test_what_is_known_beforehand_counts():
    """A test known as flaky needs fewer reruns to be told so."""
    known = {Cause.CODE: 0.1, Cause.FLAKE: 0.8, Cause.WORKER: 0.05, Cause.ENVIRONMENT: 0.05}
    passed = [Seen(rerun=Rerun(on_base=False, elsewhere=False), failed=False)] * 2
    assert blame(passed, known).cause is Cause.FLAKE
    assert blame(passed).chances[Cause.FLAKE] < blame(passed, known).chances[Cause.FLAKE]
    for wrong in ({}, {**PRIOR, Cause.CODE: 0.0}):
        with pytest.raises(
            SettingsError, match="a prior gives each of code, flake, worker, environment a chance above 0"
        ):
            blame(passed, wrong)


def test_evidence_in_words():
    candidate, base = Rerun(on_base=False, elsewhere=True), Rerun(on_base=True, elsewhere=True)
    seen = [Seen(rerun=candidate, failed=True)] * 3 + [Seen(rerun=base, failed=False)] * 3
    told = blame(seen)
    assert told.cause is Cause.CODE
    assert told.sentence.startswith("the candidate's code (9")
    assert told.sentence.endswith(
        "% sure): the candidate on another worker failed 3 of 3; the base on another worker failed 0 of 3 (6 reruns)"
    )
    assert next_rerun(seen) is None


def test_earlier_runs_tell_how_flaky_it_is():
    """Against Bayes' rule by hand: over the rates of flakes, (2, 9) of beta; others fail in one of a hundred."""
    rates = [number / 2000 for number in range(1, 2000)]
    density = [rate * (1 - rate) ** 8 for rate in rates]
    for passed, failed in [(0, 0), (10, 0), (10, 2), (3, 3)]:
        likelihood = [(1 - rate) ** passed * rate**failed for rate in rates]
        flake = sum(map(lambda one, two: one * two, density, likelihood)) / sum(density)
        others = 0.99**passed * 0.01**failed
        expected = flake / (flake + 3 * others)
        assert blame(past=Past(passed=passed, failed=failed)).chances[Cause.FLAKE] == pytest.approx(expected, abs=0.03)
    assert blame(past=Past(passed=10**6)) == blame(past=Past(passed=30)), "it may have become flaky since"


def test_code_that_has_not_changed_is_not_blamed():
    seen = [Seen(rerun=Rerun(on_base=False, elsewhere=True), failed=True)] * 9
    assert blame(seen, UNCHANGED).cause is Cause.ENVIRONMENT
    assert sum(UNCHANGED.values()) == pytest.approx(1, abs=1e-5)


def test_what_tells_too_little_is_not_run():
    """Without a base, code and environment stay apart by nothing: no rerun is worth its cost."""
    here = {rerun: 1.0 for rerun in RERUNS if not rerun.on_base}
    seen: list[Seen] = []
    while (rerun := next_rerun(seen, costs=here, worth=0.02)) is not None:
        seen.append(Seen(rerun=rerun, failed=True))
    assert len(seen) <= 4
    assert next_rerun(seen, costs=here) is not None
