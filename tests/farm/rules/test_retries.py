"""Which tasks of a plan are submitted again, and what the new ones come after."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.retries import COMPLETED, LIVE, SKIPPED, PlanTask, Retries

FAILED = "failed"


def again(name: str) -> str:
    return f"{name}'"


def plan(outcomes: Mapping[str, str], after: Mapping[str, str] | None = None, **retry_of: str) -> Retries:
    after = after or {}
    tasks = [
        PlanTask(task=name, outcome=outcome, after=tuple(after.get(name, "").split()), retry_of=retry_of.get(name, ""))
        for name, outcome in outcomes.items()
    ]
    return Retries(tasks, again)


def test_what_did_not_complete_dependencies_first():
    retries = plan(
        {"a": SKIPPED, "b": FAILED, "c": COMPLETED, "d": "cancelled", "e": LIVE, "f": "expired"}, {"a": "b d"}
    )
    assert retries.not_completed() == ["b", "d", "a", "f"]


def test_the_latest_of_a_chain_speaks_for_it():
    retries = plan({"a": FAILED, "b": COMPLETED, "c": FAILED, "d": FAILED}, b="a", d="c")
    assert retries.not_completed() == ["d"]


def test_a_retry_that_runs_is_not_tried_again():
    assert plan({"a": FAILED, "b": LIVE}, b="a").not_completed() == []


def test_with_those_that_were_skipped_however_far():
    retries = plan(
        {"a": FAILED, "b": SKIPPED, "c": SKIPPED, "d": COMPLETED, "e": SKIPPED, "x": FAILED},
        {"b": "a", "c": "b", "d": "a", "e": "x"},
    )
    assert retries.with_skipped("a") == ["a", "b", "c"]


def test_those_that_were_skipped_of_a_retry_too():
    """`b` was skipped with the first try; the second try `a2` is tried again now, and `b` with it."""
    retries = plan({"a": FAILED, "b": SKIPPED, "a2": FAILED}, {"b": "a"}, a2="a")
    assert retries.with_skipped("a2") == ["a2", "b"]
    assert retries.rewired(("a",), ["a2", "b"]) == ("a2'",)


def test_new_ones_come_after_the_latest_and_not_after_what_has_completed():
    retries = plan({"a": FAILED, "b": COMPLETED, "c": FAILED, "d": LIVE, "e": FAILED, "f": COMPLETED}, d="c", f="e")
    assert retries.rewired(("a", "b", "c", "e", "elsewhere"), ["a"]) == ("a'", "d", "elsewhere")


def test_who_is_about_to_be_skipped():
    retries = plan({"a": FAILED, "b": LIVE, "c": LIVE, "d": LIVE}, {"b": "a", "c": "b"})
    assert retries.about_to_be_skipped() == ["b"]


def test_what_this_retry_has_made_is_not_tried_again_by_it():
    """It was asked for in pages, and the first of it has failed meanwhile."""
    retries = plan({"a": FAILED, "b": SKIPPED, "a'": FAILED}, {"b": "a"}, **{"a'": "a"})
    assert retries.not_completed() == ["a", "b"]
    assert [retries.is_made(task) for task in ("a", "b")] == [True, False]
    assert retries.rewired(("a",), ["a", "b"]) == ("a'",)


@st.composite
def plans(draw) -> tuple[dict[str, str], dict[str, str]]:
    names = [f"t{number}" for number in range(draw(st.integers(1, 8)))]
    outcomes, after = {}, {}
    for number, name in enumerate(names):
        before = draw(st.lists(st.sampled_from(names[:number]), unique=True)) if number else []
        after[name] = " ".join(before)
        lost = any(outcomes[other] != COMPLETED for other in before)
        outcomes[name] = SKIPPED if lost else draw(st.sampled_from([COMPLETED, FAILED]))
    return outcomes, after


@given(plans())
def test_what_is_tried_again_needs_nothing_that_is_lost(told):
    """After `retry --failed` of a plan that is done, everything comes after new tasks or nothing, and no task is left out."""
    outcomes, after = told
    retries = plan(outcomes, after)
    chosen = retries.not_completed()
    assert set(chosen) == {name for name, outcome in outcomes.items() if outcome != COMPLETED}
    seen: set[str] = set()
    for name in chosen:
        assert set(retries.rewired(after[name].split(), chosen)) <= seen
        seen.add(again(name))


@given(plans(), st.data())
def test_a_task_brings_just_those_that_are_reached_from_it(told, data):
    """Against the obvious: whoever was skipped and has a path of skipped ones to the task."""
    outcomes, after = told
    failed = [name for name, outcome in outcomes.items() if outcome == FAILED]
    if not failed:
        return
    start = data.draw(st.sampled_from(failed))
    reached = {start}
    for name in outcomes:  # dependencies come first
        if outcomes[name] == SKIPPED and reached & set(after[name].split()):
            reached.add(name)
    assert set(plan(outcomes, after).with_skipped(start)) == reached


@pytest.mark.parametrize("size", [10_000])
def test_a_large_plan_is_cheap(size: int):
    """One gather after 10,000 that failed: every step looks at each link once."""
    outcomes = {f"{number:05}": FAILED for number in range(size)} | {"z": SKIPPED}
    retries = plan(outcomes, {"z": " ".join(outcomes)[:-2]})
    chosen = retries.not_completed()
    assert chosen[-1] == "z"
    assert len(retries.rewired(tuple(outcomes)[:-1], chosen)) == size
