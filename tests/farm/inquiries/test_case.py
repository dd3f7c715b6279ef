"""A whole inquiry in simulation: what is known beforehand, reruns where they are possible, and what limits the verdict."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.inquiries.blaming import inquire
from dtf_lightning.farm.inquiries.case import Base, Case, Ran
from dtf_lightning.farm.verdicts.blame import Cause, Past, Rerun

BASE = Base(named="task b", task="b")
CASE = Case(test="t", worker="w", reason="exit code 1", base=BASE)
ELSEWHERE, HERE = Rerun(on_base=False, elsewhere=True), Rerun(on_base=False, elsewhere=False)


class World:
    """A farm in which `fails(rerun, recorded_variables)` says how often the test fails."""

    def __init__(self, fails, seed=1, workers=("w", "x", "y")):
        self.fails, self.workers, self.random, self.made = fails, set(workers), random.Random(seed), []

    def takers(self):
        return self.workers

    def run(self, wanted, *, recorded_variables=False):
        self.made.append(wanted)
        chance = self.fails(wanted, recorded_variables)
        if chance is None:
            return Ran(worker="x", failed=None, reason="3 workers were lost")
        failed = self.random.random() < chance
        return Ran(worker="x" if wanted.elsewhere else "w", failed=failed, reason="exit code 1" if failed else "")


def of_cause(cause, world):
    rate = world.betavariate(2, 9)
    return {
        Cause.CODE: lambda rerun, _: 0.005 if rerun.on_base else 0.98,
        Cause.FLAKE: lambda rerun, _: rate,
        Cause.WORKER: lambda rerun, _: 0.005 if rerun.elsewhere else 0.95,
        Cause.ENVIRONMENT: lambda rerun, recorded: 0.005 if recorded else 0.98,
    }[cause], rate if cause is Cause.FLAKE else 0.005


@pytest.mark.parametrize("runs_before", [0, 20])
def test_each_cause_is_found(runs_before):
    """With and without a history of the test, which a flaky one has failed at its rate, and with a budget of 10."""
    world, reruns, inquiries = random.Random(3), 0, 0
    for cause in Cause:
        told = Counter()
        for seed in range(150):
            fails, rate = of_cause(cause, world)
            failed = sum(world.random() < rate for _ in range(runs_before))
            case = replace(CASE, past=Past(passed=runs_before - failed, failed=failed))
            ended = inquire(case, farm := World(fails, seed), 10)
            told[ended.case.blame.cause] += 1
            reruns, inquiries = reruns + len(farm.made), inquiries + 1
        assert told[cause] / 150 >= 0.9, (cause, told)
        assert cause is not Cause.CODE or told[Cause.FLAKE] / 150 <= 0.02
    assert reruns / inquiries <= 4.5


def test_code_that_has_not_changed_is_not_blamed():
    case = replace(CASE, base=replace(BASE, same_code=True))
    ended = inquire(case, farm := World(lambda rerun, _: 0.98), 10)
    assert ended.case.blame.cause is Cause.ENVIRONMENT
    assert not any(rerun.on_base for rerun in farm.made)


def test_variables_that_have_changed_are_tried():
    """Of a changed environment, whether it is what the task was given."""
    case = replace(CASE, base=replace(BASE, changed_variables=("MODE",)))
    given = inquire(case, World(lambda rerun, recorded: 0.0 if recorded else 1.0), 10)
    outside = inquire(case, World(lambda rerun, recorded: 1.0), 10)
    assert (given.case.blame.cause, given.variables) == (Cause.ENVIRONMENT, True)
    assert (outside.case.blame.cause, outside.variables) == (Cause.ENVIRONMENT, False)


def test_without_a_base_nobody_is_blamed_for_what_fails_everywhere():
    ended = inquire(replace(CASE, base=None), farm := World(lambda rerun, _: 1.0), 10)
    assert ended.case.blame.cause is None
    assert len(farm.made) <= 4, "more of the same would tell nothing"


def test_without_another_worker_it_is_said():
    ended = inquire(CASE, World(lambda rerun, _: 1.0, workers=["w"]), 10)
    assert ended.case.blame.cause is None
    assert "there is no other worker: worker and environment cannot be told apart" in ended.case.notes
    gone = inquire(CASE, World(lambda rerun, _: 0.0, workers=["x"]), 4)
    assert gone.case.blame.cause is None
    assert "w takes no tasks now: it cannot be told from a flake" in gone.case.notes


def test_where_a_rerun_ran_counts():
    """One that was to run elsewhere and ran on the same worker is evidence of that one; there is no second try."""

    class Lonely(World):
        def run(self, wanted, *, recorded_variables=False):
            return replace(super().run(wanted), worker="w")

    ended = inquire(CASE, farm := Lonely(lambda rerun, _: 1.0), 10)
    assert sum(rerun.elsewhere for rerun in farm.made) == 1
    assert not any(one.rerun.elsewhere for one in ended.case.seen)
    assert any("no other worker ran it" in note for note in ended.case.notes)


def test_reruns_that_end_otherwise_tell_nothing():
    ended = inquire(CASE, farm := World(lambda rerun, _: None), 10)
    assert (len(farm.made), ended.case.seen, ended.case.blame.cause) == (2, (), None)
    assert "a rerun came to no end of its own: 3 workers were lost" in ended.case.notes


def test_a_base_without_the_test_is_none():
    """A commit that was named, on which it fails in another way: the environment would be blamed for it."""

    class Missing(World):
        def run(self, wanted, *, recorded_variables=False):
            ran = super().run(wanted)
            return replace(ran, reason="exit code 4") if wanted.on_base else ran

    ended = inquire(replace(CASE, base=Base(named="v1")), Missing(lambda rerun, _: 1.0), 10)
    assert ended.case.blame.cause is None
    assert not any(one.rerun.on_base for one in ended.case.seen)
    assert any(
        note.startswith("on v1 it fails in another way (exit code 4, not exit code 1)") for note in ended.case.notes
    )


def test_the_budget_is_kept():
    world = World(lambda rerun, _: 0.3, seed=2)
    assert len(inquire(CASE, world, 2).case.steps) == len(world.made) == 2
    assert inquire(CASE, World(lambda rerun, _: 1.0), 0).case.steps == ()


TOLD = {
    "task_id": "i", "name": "t", "has_code": True, "passed": 3, "failed": 1,
    "base": {"task_id": "b", "create_time": "then", "same_code": False, "changed_variables": ["A"]},
}  # fmt: skip


def attempt(worker, failed):
    return {"worker_id": worker, "failed": failed, "reason": "exit code 1" if failed else ""}


def test_attempts_of_the_task_are_evidence():
    """All after the first that failed; a task that passed when it was tried again can be asked about, too."""
    case = Case.of({**TOLD, "attempts": [attempt("w", True), attempt("x", True), attempt("w", False)]})
    assert (case.worker, case.base.task, case.past) == ("w", "b", Past(passed=3, failed=1))
    assert [(one.rerun, one.failed) for one in case.seen] == [(ELSEWHERE, True), (HERE, False)]
    assert case.runs == (2, 6)


def test_who_cannot_be_asked_about():
    with pytest.raises(SettingsError, match="no attempt at task i has failed by itself"):
        Case.of({**TOLD, "attempts": [attempt("w", False)]})
    with pytest.raises(SettingsError, match="this task's code lies on its workers"):
        Case.of({**TOLD, "has_code": False, "attempts": [attempt("w", True)]}, "v1")
    told = Case.of({**TOLD, "base": None, "attempts": [attempt("w", True)]})
    assert "code and environment cannot be told apart" in told.notes
