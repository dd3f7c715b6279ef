"""The books of a storm: each way in which they can fail to balance is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtf_lightning.farm.record.task_id import array_id, instance_id, new_task_id
from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.testkit.books import Books, row_of
from dtf_lightning.farm.testkit.ledger import Acknowledged, Execution, Ledger, read_ledgers, read_runs, said
from dtf_lightning.farm.testkit.orders import SUSPECTED, Character, Order, tasks_of


def order(number: int, character: Character = Character.COMPLETES) -> Order:
    return Order(number=number, character=character, real=False, seconds=0.0)


def envelope(task: str, attempt: int = 1, outcome: TaskOutcome = TaskOutcome.COMPLETED, reason: str = "") -> Envelope:
    nothing = outcome is TaskOutcome.SKIPPED
    tail = "" if nothing else said(task, attempt, f"n{attempt}")
    return Envelope(outcome=outcome, attempt=0 if nothing else attempt, revision=7, tail=tail, reason=reason)


def books(told: dict[str, Envelope], **changes) -> Books:
    """a completes at once, b at its second attempt, c fails, d comes after c."""
    rows = tuple(row_of(task, envelope) for task, envelope in told.items())
    executions = [Execution(task, n, said(task, n, f"n{n}")) for task, n in (("a", 1), ("b", 1), ("b", 2), ("c", 1))]
    return replace(
        Books(
            accepted={
                "a": order(0),
                "b": order(1, Character.FAILS_ONCE),
                "c": order(2, Character.FAILS),
                "d": order(3),
            },
            before={"d": "c"},
            recorded=told,
            versions=dict.fromkeys(told, 1),
            archived=frozenset(),
            rows={"c0": rows, "c1": rows},
            executions=executions,
            acknowledged=[
                Acknowledged("a", 1, "completed", True),
                Acknowledged("b", 1, "failed", True),
                Acknowledged("b", 2, "completed", True),
                Acknowledged("a", 2, "completed", False),
            ],
        ),
        **changes,
    )


GOOD = {
    "a": envelope("a"),
    "b": envelope("b", 2),
    "c": envelope("c", outcome=TaskOutcome.FAILED),
    "d": envelope("d", outcome=TaskOutcome.SKIPPED),
}


def test_they_balance():
    found = books(GOOD)
    assert found.problems() == []
    assert found.summary() == "accepted 4, recorded 4 once, executed twice 1 (2 completed, 1 failed, 1 skipped)"


def test_what_etcd_has_archived_is_recorded():
    kept = {task: told for task, told in GOOD.items() if task != "a"}
    assert books(GOOD, recorded=kept, archived=frozenset({"a"})).problems() == []


def test_a_task_that_workers_were_lost_with_may_fail():
    suspect = envelope("a", 3, TaskOutcome.FAILED, f"3 workers were lost while they ran it: {SUSPECTED}")
    assert books({**GOOD, "a": suspect}, acknowledged=[]).problems() == []


ROWS = tuple(row_of(task, told) for task, told in GOOD.items())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"recorded": {task: GOOD[task] for task in "abc"}}, "1 tasks were accepted and are not in etcd's record: d"),
        ({"recorded": {**GOOD, "x": GOOD["a"]}}, "1 tasks are in etcd's record and were not accepted: x"),
        ({"versions": {"a": 2}}, "1 results were written more than once: a"),
        ({"rows": {"c0": ROWS, "c1": ROWS[1:]}}, "1 tasks are missing in c1's DuckDB: a"),
        ({"rows": {"c0": (*ROWS, ROWS[0])}}, "1 tasks are twice in c0's DuckDB: a"),
        (
            {"rows": {"c0": (replace(ROWS[0], revision=8), *ROWS[1:])}},
            "1 tasks are in c0's DuckDB otherwise than in etcd: a",
        ),
        (
            {"rows": {"c0": ROWS, "c1": (replace(ROWS[0], revision=8), *ROWS[1:])}, "recorded": {}, "archived": frozenset("abcd")},
            "1 results are not the same in the DuckDB of all coordinators: a",
        ),
        ({"executions": []}, "2 tasks completed by an attempt that no worker began: a, b"),
        (
            {"executions": [Execution("a", 1, "another"), *books(GOOD).executions[1:]]},
            "1 results hold the output of another attempt than the one that counts: a",
        ),
        ({"executions": [*books(GOOD).executions, Execution("d", 1, "d")]}, "1 tasks were skipped and ran: d"),
        ({"executions": [*books(GOOD).executions, Execution("x", 1, "x")]}, "1 tasks ran that were not accepted: x"),
        (
            {"acknowledged": [Acknowledged("b", 1, "completed", True)]},
            "1 results were acknowledged as recorded, and another attempt's counts: b",
        ),
        ({"left_over": ["3 files: x"]}, "3 files: x"),
    ],
)  # fmt: skip
def test_what_does_not_balance(changes, problem):
    assert problem in books(GOOD, **changes).problems()


@pytest.mark.parametrize(
    ("task", "told", "problem"),
    [
        ("c", envelope("c"), "1 tasks ended as completed, though a task that fails: c"),
        ("a", envelope("a", outcome=TaskOutcome.FAILED), "1 tasks ended as failed, though a task that completes: a"),
        ("d", envelope("d"), "1 tasks ended as completed behind a task that did not complete: d"),
        ("a", envelope("a", outcome=TaskOutcome.EXPIRED), "1 tasks ended as expired, though a task that completes: a"),
    ],
)
def test_tasks_that_end_otherwise(task, told, problem):
    assert problem in books({**GOOD, task: told}, executions=[]).problems()


ARRAY = array_id(new_task_id(1_800_000_000.0))
ONE, OTHER = (instance_id(ARRAY, index) for index in range(2))


def with_an_array(outcome: TaskOutcome, last: TaskOutcome) -> Books:
    """An array of two, of which the first has completed, and how the second and the whole have ended."""
    asked = tasks_of(ARRAY, replace(order(4, Character.COMPLETES), array=2))
    ends = {
        ARRAY: Envelope(outcome=outcome, attempt=0, revision=9),
        ONE: envelope(ONE),
        OTHER: envelope(OTHER, outcome=last),
    }
    ran = [Execution(task, 1, said(task, 1, "n1")) for task in (ONE, OTHER)]
    found = books({**GOOD, **ends})
    return replace(found, accepted={**found.accepted, **asked}, executions=[*found.executions, *ran])


def test_arrays():
    """An array and all of its instances are recorded, and it completes if they do."""
    assert with_an_array(TaskOutcome.COMPLETED, TaskOutcome.COMPLETED).problems() == []
    wrong = f"1 tasks ended as completed, though an array whose instances are completed, failed: {ARRAY}"
    assert wrong in with_an_array(TaskOutcome.COMPLETED, TaskOutcome.FAILED).problems()
    assert f"1 tasks ended as failed, though an array whose instances are completed: {ARRAY}" in (
        with_an_array(TaskOutcome.FAILED, TaskOutcome.COMPLETED).problems()
    )


@pytest.mark.parametrize(
    ("changes", "balances"),
    [({}, True), ({"work": "other"}, False), ({"tail": "x"}, False), ({"source": "c"}, False), ({"ran": True}, False)],
)
def test_results_that_were_used_again(changes, balances):
    """Only that of the same work, which completed by itself; and then nobody began the task."""
    given = {"work": "w", "tail": GOOD["a"].tail, "source": "a", "ran": False} | changes
    told = replace(envelope("e"), attempt=0, revision=0, reused_from=given["source"], tail=given["tail"])
    found = books({**GOOD, "e": told})
    accepted = {**found.accepted, "a": replace(order(0), work="w"), "e": replace(order(4), work=given["work"])}
    ran = [Execution("e", 1, "e")] if given["ran"] else []
    problems = replace(found, accepted=accepted, executions=[*found.executions, *ran]).problems()
    assert (problems == []) == balances, problems


def test_a_gangs_member_that_was_recorded():
    """Its attempt may have been taken back afterwards, with another member's worker."""
    found = books(GOOD, accepted={**books(GOOD).accepted, "b": replace(order(1, Character.FAILS_ONCE), gang=2)})
    told = [Acknowledged("b", 1, "completed", True)]
    assert replace(found, acknowledged=told).problems() == []


def test_ledgers(tmp_path):
    """What was written is read, and half a line is no line."""
    ledger = Ledger(tmp_path / "s0.ledger")
    ledger.write("start", "a", 1, 7, "w", "n")
    ledger.write("recorded", "a", 1, "completed")
    ledger.write("stale", "b", 2, "failed")
    ledger.close()
    executions, acknowledged = read_ledgers([tmp_path / "s0.ledger"])
    assert executions == [Execution("a", 1, "a 1 n")]
    assert acknowledged == [Acknowledged("a", 1, "completed", True), Acknowledged("b", 2, "failed", False)]
    (tmp_path / "runs").write_text("a 1 4711\n")
    assert read_runs(tmp_path / "runs") == [Execution("a", 1, "a 1 4711")]
    assert read_runs(tmp_path / "none") == []
    (tmp_path / "s1.ledger").write_text("start a\n")
    with pytest.raises(ValueError, match="no line of a ledger: 'start a'"):
        read_ledgers([tmp_path / "s1.ledger"])
