"""Two plans side by side: what broke and was mended, and which differences are larger than noise."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.results.tests.sides import newest_plans, read_sides
from dtf_lightning.farm.verdicts.metrics import Metric

LATENCY = Metric.parse("latency:ms")


def test_what_has_become_of_each_test(results, run):
    ends = {
        "broken": ("passed", "failed"), "mended": ("timeout", "passed"), "fails": ("failed", "lost"),
        "gone": ("passed", ""), "new": ("", "passed"), "passes": ("passed", "passed"),
    }  # fmt: skip
    for plan, side in (("a", 0), ("b", 1)):
        for name, both in ends.items():
            if both[side]:
                run(both[side], name=name, plan=plan)
    told = read_sides(results, "a", "b", LATENCY)
    assert [(pair.test, pair.state) for pair in told.pairs] == [(name, name) for name in ends]
    assert told.counts == dict.fromkeys(ends, 1)
    assert (told.base.runs, told.candidate.runs) == (5, 5)


def test_differences_are_told_by_the_noise_before(results, run):
    """Twenty plans before say how much each varies: what is within that is noise, also 10 % of what is noisy."""
    values = {"quiet": (100, 110, 1), "noisy": (100, 110, 20), "faster": (100, 80, 1), "short": (100, 150, 0)}
    run.passed(
        {"name": name, "plan": f"p{number:02}", "metrics": {"latency": base + noise * (number % 3 - 1)}}
        for number in range(20)
        for name, (base, _, noise) in values.items()
        if name != "short"
    )
    run.passed(
        {"name": name, "plan": plan, "metrics": {"latency": float(both[side])}}
        for plan, side in (("base", 0), ("candidate", 1))
        for name, both in values.items()
    )
    told = read_sides(results, "base", "candidate", LATENCY)
    assert {pair.test: (round(pair.change), pair.told) for pair in told.pairs} == {
        "quiet": (10, "worse"), "noisy": (10, "noise"), "faster": (-20, "better"), "short": (50, "")
    }  # fmt: skip
    assert [pair.test for pair in told.pairs] == ["quiet", "faster", "short", "noisy"]
    assert next(pair for pair in told.pairs if pair.test == "short").visible is None


def test_where_more_is_better(results, run):
    run.passed({"name": "t", "plan": f"p{number}", "metrics": {"speed": 100.0 + number % 2}} for number in range(12))
    run(name="t", plan="candidate", metrics={"speed": 50.0})
    (pair,) = read_sides(results, "p11", "candidate", Metric.parse("speed:1/s")).pairs
    assert (pair.told, round(pair.change)) == ("worse", -50)


def test_a_side_by_its_branch_or_commit(results, run):
    for plan, branch, commit in (("old", "main", "a"), ("new", "main", "b"), ("mine", "mine", "c")):
        run(name="t", plan=plan, environment={"GIT_BRANCH": branch, "GIT_COMMIT": commit * 40})
    told = read_sides(results, "main", "ccccccc", LATENCY)
    assert (told.base.plan, told.candidate.plan) == ("new", "mine")
    assert [str(side.version) for side in newest_plans(results)] == [
        "mine cccccccccc",
        "main bbbbbbbbbb",
        "main aaaaaaaaaa",
    ]


def test_what_nobody_knows(results, run):
    run(name="t", plan="a")
    with pytest.raises(SettingsError, match="'nothing' is no plan with results"):
        read_sides(results, "a", "nothing", LATENCY)
    assert newest_plans(results)[0].plan == "a"
