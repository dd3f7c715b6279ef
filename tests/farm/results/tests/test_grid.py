"""Tests against places: as a slow rule has it that looks at every run, in pages, and whatever they are called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.results.tests.grid import PLANS, WORKERS, By, GridWanted, Which, read_grid
from support.farm.results import emptied, seen_run

CLASSES = {"w1": "cpu", "w2": "cpu", "w3": "gpu"}
RUNS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "<b>", ""]),
        st.sampled_from(["passed", "failed", "timeout", "lost", "cancelled"]),
        st.sampled_from(["w1", "w2", "w3", "gone", ""]),
        st.sampled_from(["p1", "p2"]),
        st.sampled_from(["", "plan1", "plan2"]),
    ),
    max_size=25,
)


def place_of(by: By, worker: str, plan: str) -> str:
    return {By.CLASS: CLASSES.get(worker, ""), By.WORKER: worker, By.PLAN: plan}[by]


@settings(max_examples=30, deadline=None)
@given(runs=RUNS, by=st.sampled_from(By), which=st.sampled_from(Which), project=st.sampled_from(["", "p1"]))
def test_as_a_slow_rule_that_looks_at_every_run(database, runs, by, which, project):
    results = emptied(database)
    results.take_in(
        [
            seen_run(
                number,
                end,
                name=name,
                command=("pytest", "x"),
                workers=(worker,) if worker else (),
                project=of,
                plan=plan,
            )
            for number, (name, end, worker, of, plan) in enumerate(runs)
        ]
    )
    told = read_grid(results, GridWanted(by=by, which=which, project=project), CLASSES)

    tests: dict[str, list[str]] = {}
    cells: dict[tuple[str, str], list[str]] = {}
    for name, end, worker, of, plan in runs:
        if end != "cancelled" and project in ("", of):
            test = name or "pytest x"
            tests.setdefault(test, []).append(end)
            if by is not By.PLAN or plan:
                cells.setdefault((test, place_of(by, worker, plan)), []).append(end)
    failed = {test for test, ends in tests.items() if ends[-1] != "passed"}
    changed = {test for test, ends in tests.items() if len(ends) > 1 and ends[-1] != ends[-2]}
    assert (told.num_tests, told.num_failed, told.num_changed) == (len(tests), len(failed), len(changed))
    shown = {Which.ALL: set(tests), Which.FAILED: failed, Which.CHANGED: changed}[which]
    assert [(row.test, row.last, row.runs) for row in told.rows] == [
        (test, tests[test][-1], len(tests[test])) for test in sorted(shown)
    ]
    for row in told.rows:
        expected = {place: ends for (test, place), ends in cells.items() if test == row.test}
        assert {
            place: (cell.last, cell.before, cell.runs, cell.failed, cell.changed) for place, cell in row.cells.items()
        } == {
            place: (
                ends[-1],
                ends[-2] if len(ends) > 1 else "",
                len(ends),
                sum(end != "passed" for end in ends),
                len(ends) > 1 and ends[-1] != ends[-2],
            )
            for place, ends in expected.items()
        }
        assert set(row.cells) <= set(told.places)


def test_pages_and_search_change_no_total(results, run):
    for number in range(5):
        run("failed" if number == 3 else "passed", name=f"Test {number}")
    first = read_grid(results, GridWanted(limit=2), {})
    assert ([row.test for row in first.rows], first.more) == (["Test 0", "Test 1"], True)
    last = read_grid(results, GridWanted(limit=2, behind="Test 3"), {})
    assert ([row.test for row in last.rows], last.more) == (["Test 4"], False)
    found = read_grid(results, GridWanted(search="TEST 2"), {})
    assert [row.test for row in found.rows] == ["Test 2"]
    for one in (first, last, found, read_grid(results, GridWanted(search="nothing"), {})):
        assert (one.num_tests, one.num_failed) == (5, 1)


def test_no_results(results):
    told = read_grid(results, GridWanted(), {})
    assert (told.places, told.rows, told.num_tests, told.more) == ((), (), 0, False)


@pytest.mark.parametrize("by", [By.PLAN, By.WORKER])
def test_so_many_columns_and_no_more(results, by):
    results.take_in(
        [
            seen_run(number, "passed", name="t", plan=f"plan{number:03}", workers=(f"w{number:03}",))
            for number in range(60)
        ]
    )
    told = read_grid(results, GridWanted(by=by), {})
    assert (
        told.places == tuple(f"plan{number:03}" for number in range(59, 59 - PLANS, -1))
        if by is By.PLAN
        else told.places == tuple(f"w{number:03}" for number in range(60 - WORKERS, 60))
    )
