"""Restart mode's rounds: who waits for whom, who is taken, when it ends. Each decision with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.rounds import (
    Arrivals,
    RoundStep,
    RoundView,
    joiners,
    next_round,
    plan_round,
    why_let_in,
    why_stop,
)
from dtf_lightning.elastic.settings import ElasticSettings

SETTINGS = ElasticSettings(min_nodes=1, max_nodes=4)


def record(node, order=0, **fields):
    return NodeRecord(node=node, host="h", num_workers=1, store_port=ord(node), order=order or ord(node), **fields)


def current(*nodes, number=3, **fields):
    members = tuple(Member(node=node, incarnation=1, num_workers=1) for node in nodes)
    return Generation(number=number, members=members, instance="i", formed_at=1000.0, **fields)


def view(current, *records, failed=None, completed=()):
    return RoundView(current=current, records=records, failed=failed or {}, completed=frozenset(completed))


def plan(view, *, settings=SETTINGS, quiet_since=0.0, now=0.0, wall=1000.0):
    return plan_round(settings, view, quiet_since=quiet_since, now=now, wall=wall)


FIRST = Generation(number=0)


def test_first_round_waits_for_more():
    """Nodes that start together enter together; a full house need not wait."""
    two = view(FIRST, record("b", 2, ready_after=0), record("a", 1, ready_after=0))
    decision = plan(two, now=1.5)
    assert (decision.step, decision.reason, decision.until) == (
        RoundStep.WAIT,
        "2 nodes here, more may come for 0.5 s",
        2.0,
    )
    formed = plan(two, now=2.0)
    assert (formed.step, formed.kind, [r.node for r in formed.members]) == (RoundStep.FORM, "start", ["a", "b"])
    full = plan(two, settings=ElasticSettings(min_nodes=1, max_nodes=2))
    assert full.step is RoundStep.FORM


def test_below_min_nodes():
    """Nobody trains, and the reason counts."""
    alone = view(FIRST, record("a", ready_after=0))
    decision = plan(alone, settings=ElasticSettings(min_nodes=2, max_nodes=2), now=99)
    assert (decision.step, decision.reason) == (RoundStep.WAIT, "1 of at least 2 nodes are here")


def test_survivors_first_then_joiners():
    """All living members have stopped: the next round at once, survivors in their order, on the first one's store."""
    four = view(
        current("c", "a"), record("a", 1, ready_after=3), record("b", 2, ready_after=3), record("c", 3, ready_after=3)
    )
    decision = plan(four)
    assert (decision.step, decision.kind, decision.reason) == (RoundStep.FORM, "join", "1 node joined")
    formed = next_round(four.current, decision, instance="i", wall=1001.0)
    assert [member.node for member in formed.members] == ["c", "a", "b"]
    assert (formed.number, formed.store_port) == (4, ord("c"))


def test_nobody_is_started_before_all_have_stopped():
    """A member that still trains is waited for by name; one that leaves, finished or died is not."""
    busy = view(current("a", "b"), record("a", ready_after=3), record("b"))
    assert plan(busy).reason == "1 of 2 nodes have stopped, waits for b"
    for other in (record("b", leaving=True), record("b", finished=3), record("b", state=WorkerState.LEFT)):
        decision = plan(view(current("a", "b"), record("a", ready_after=3), other))
        assert (decision.step, [r.node for r in decision.members]) == (RoundStep.FORM, ["a"])


def test_spare():
    """Above max_nodes a node waits, and is told as what."""
    decision = plan(
        view(current("a"), record("a"), record("b", ready_after=3)), settings=ElasticSettings(min_nodes=1, max_nodes=1)
    )
    assert decision.reason == "round 3 trains with 1 node; this node is a spare (at most 1 node)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"leaving": True, "detail": "SIGTERM"}, "b leaves: SIGTERM"),
        ({"suspect": 3, "detail": "exit code 1"}, "a worker failed on b: exit code 1"),
        ({"ready_after": 3}, "b starts its workers anew"),
        ({"ready_after": 2}, ""),
        ({"finished": 3}, ""),
        ({"finished": 3, "leaving": True}, ""),
    ],
)
def test_when_to_stop(change, reason):
    """What one member's record means to the others."""
    assert why_stop(view(current("a", "b"), record("a"), replace(record("b"), **change))) == reason


def test_gone_members():
    """Gone without a goodbye stops the others, gone after its work does not."""
    gone = view(current("a", "b"), record("a"), failed={"b": "link closed, port refused"})
    assert why_stop(gone) == "b is gone: link closed, port refused"
    assert why_stop(view(current("a", "b"), record("a"), completed={"b"})) == ""


def test_joiners_are_let_in_together():
    """After the stability window, measured anew for each that comes, at most max_wait; nobody once a member finished."""
    arrivals = Arrivals()
    one = view(current("a"), record("a"), record("b", ready_after=3))
    two = view(current("a"), *one.records, record("c", ready_after=3))
    assert why_let_in(SETTINGS, one, arrivals, 10.0) == ("", 10.2)
    assert why_let_in(SETTINGS, two, arrivals, 10.1) == ("", pytest.approx(10.3))
    assert why_let_in(SETTINGS, two, arrivals, 10.3) == ("b, c joins", None)
    finished = view(current("a"), record("a", finished=3), record("b", ready_after=3))
    assert joiners(SETTINGS, finished) == ()


def test_failures_in_a_row_end_the_run():
    """Counted over rounds that did not live for failure_window; a round that did begins the count anew."""
    settings = replace(SETTINGS, max_consecutive_failures=2)
    failing = record("a", ready_after=3, suspect=3, detail="exit code 1")
    third = view(current("a", num_consecutive_failures=2), failing)
    decision = plan(third, settings=settings, wall=1001.0)
    assert decision.step is RoundStep.ABORT
    assert decision.reason.startswith("3 failures in a row")
    assert "a: exit code 1" in decision.reason
    later = plan(third, settings=settings, wall=1000.0 + settings.failure_window)
    assert (later.step, later.kind, later.num_consecutive_failures) == (RoundStep.FORM, "failure", 1)


records = st.builds(
    lambda node, ready, suspect, leaving, finished, state: record(
        node, ready_after=ready, suspect=suspect, leaving=leaving, finished=finished, state=state
    ),
    st.sampled_from("abcdef"),
    st.sampled_from([None, 2, 3]),
    st.sampled_from([0, 3]),
    st.booleans(),
    st.sampled_from([0, 3]),
    st.sampled_from([WorkerState.ACTIVE, WorkerState.FAILED]),
)


@given(st.lists(records, unique_by=lambda r: r.node), st.sets(st.sampled_from("abc")), st.integers(1, 4))
def test_rules_of_every_round(nodes, members, max_nodes):
    """Only nodes whose workers have stopped, none twice, within the limits, and everybody comes to the same result."""
    settings = ElasticSettings(min_nodes=1, max_nodes=max_nodes)
    here = view(current(*sorted(members)), *nodes)
    decision = plan(here, settings=settings, now=100.0)
    assert decision == plan(replace(here, records=tuple(reversed(nodes))), settings=settings, now=100.0)
    if decision.step is RoundStep.FORM:
        chosen = [r.node for r in decision.members]
        assert len(chosen) == len(set(chosen)) <= max_nodes
        assert all(r.ready_after == 3 and not r.leaving and r.state is not WorkerState.FAILED for r in decision.members)
        survivors = [node for node in sorted(members) if node in chosen]
        assert chosen[: len(survivors)] == survivors
