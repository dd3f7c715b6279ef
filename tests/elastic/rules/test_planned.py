"""Joins and leaves: prepare, stop, form."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.rules.planning import stays_for_newcomers
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.state import RescalePhase
from support.elastic.simulated_run import SimulatedRun


def test_join():
    """A third node gets ready: window, PREPARE, STOP two boundaries past the furthest, and all three form."""
    run = SimulatedRun(min_nodes=2)
    run.start("a", "b")
    run.join("c")
    assert run.wait.reason == "2 of 4 nodes: c is not ready"
    run.ready("c")
    assert run.wait.reason == "2 of 4 nodes: c joins, waiting 0.2 s for more changes"
    run.advance(0.2)
    assert (run.directive.kind, run.directive.target) == (DirectiveKind.PREPARE, 2)
    run.answer("a", boundary=7)
    assert run.wait.reason == "1 of 2 said their boundary, waiting for b"
    run.answer("b", boundary=9)
    assert (run.directive.kind, run.directive.boundary, run.directive.leaving) == (DirectiveKind.STOP, 11, ())
    run.ready("b")
    assert run.wait.reason == "1 of 2 at the boundary, waiting for a"
    run.ready("a")
    assert run.members == ["a", "b", "c"]
    assert run.generation.kind == "join"
    assert run.generation.reason == "c#1 joined: 2 -> 3 nodes, 6 workers"


def test_leave():
    """A node gets SIGTERM: it leaves at the boundary; the others do not wait for its process to end."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b", "c")
    run.leave("a")
    run.advance(0.2)
    run.answer("a", "b", "c")
    assert run.directive.leaving == ("a#1",)
    run.ready("b", "c")
    assert run.members == ["b", "c"]
    assert run.generation.kind == "leave"
    run.train()
    run.left("a")
    assert run.phase is RescalePhase.STABLE
    assert run.generation.failures == ()


def test_changes_within_the_window_enter_one_generation():
    """Two joins and a leave 0.1 s apart: one rescale, of kind mixed."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c", "d")
    run.ready("c")
    run.advance(0.1)
    run.leave("b")
    run.advance(0.1)
    run.ready("d")
    assert len(run.directives) == 0
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["a", "c", "d"]
    assert run.generation.number == 2
    assert run.generation.kind == "mixed"


def test_changes_outside_the_window_do_not_wait():
    """The second newcomer gets ready after the window: it comes one generation later."""
    run = SimulatedRun(min_nodes=1, max_nodes=3)
    run.start("a")
    run.join("b", "c")
    run.ready("b")
    run.advance(0.2)
    run.planned_rescale()
    run.ready("c")
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["a", "b", "c"]
    assert run.generation.number == 3


def test_a_newcomer_that_gets_ready_during_the_rescale_comes_along():
    """Everybody stops anyway: who is ready by then is let in."""
    run = SimulatedRun(min_nodes=1)
    run.start("a")
    run.join("b", "c")
    run.ready("b")
    run.advance(0.2)
    run.ready("c")
    run.planned_rescale()
    assert run.members == ["a", "b", "c"]


def test_a_steady_stream_of_joins_is_capped():
    """A node gets ready every 0.15 s, always within the window: after max_wait the rescale begins."""
    run = SimulatedRun(min_nodes=1, max_nodes=100, max_wait=2.0)
    run.start("a")
    for number in range(14):
        assert run.phase is RescalePhase.STABLE
        run.join(f"n{number}")
        run.ready(f"n{number}")
        run.advance(0.15)
    assert run.phase is RescalePhase.PREPARING


def test_a_joiner_that_comes_and_goes_disturbs_nobody():
    """It vanishes within the window: no rescale."""
    run = SimulatedRun(min_nodes=1)
    run.start("a")
    run.join("b")
    run.ready("b")
    run.advance(0.1)
    run.gone("b")
    run.advance(10)
    assert run.directives == []
    assert run.phase is RescalePhase.STABLE


def test_a_joiner_that_dies_after_prepare():
    """Workers wait for the stop that was promised: it comes, and the same world forms again."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.gone("c")
    run.planned_rescale()
    assert run.members == ["a", "b"]
    assert run.generation.number == 2
    assert run.generation.failures == ()


def test_a_full_run_keeps_spares():
    """A third node for two places waits as a spare; when a member leaves it takes the place in the same rescale."""
    run = SimulatedRun(min_nodes=1, max_nodes=2)
    run.start("a", "b")
    run.join("node-e")
    run.ready("node-e")
    run.advance(100)
    assert run.phase is RescalePhase.STABLE
    assert run.wait.reason == "2 of 2 nodes: node-e waits as a spare"
    run.leave("a")
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["b", "node-e"]
    assert run.generation.kind == "mixed"


def test_a_node_without_a_place_postpones_nothing():
    """A leaver's place goes to a spare; a node that only starts meanwhile does not make the window start again."""
    run = SimulatedRun(min_nodes=1, max_nodes=2)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.leave("a")
    run.advance(0.15)
    run.join("d")
    run.advance(0.1)
    assert run.phase is RescalePhase.PREPARING


def test_a_spare_takes_the_place_of_a_dead_member():
    """The survivors go on at once; the spare comes with a planned generation right behind."""
    run = SimulatedRun(min_nodes=1, max_nodes=2)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.gone("a")
    run.ready("b")
    assert run.members == ["b"]
    run.train()
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["b", "c"]


def test_spares_come_in_order_of_arrival():
    """Two spares, one place: the one that arrived first."""
    run = SimulatedRun(min_nodes=1, max_nodes=1)
    run.start("a")
    run.join("late", order=99)
    run.join("early", order=50)
    run.ready("late", "early")
    run.leave("a")
    run.advance(0.2)
    run.planned_rescale()
    run.advance(1)
    assert run.members == ["early"]


def test_a_leave_below_the_minimum_pauses():
    """Two of two, one leaves: it may, the reason says so beforehand, the other waits."""
    run = SimulatedRun(min_nodes=2)
    run.start("a", "b")
    run.leave("b")
    run.advance(0.2)
    assert run.directive.reason == "2 of 4 nodes: b leaves; the run will pause with 1 of 2 nodes"
    run.answer("a", "b")
    run.ready("a")
    assert run.phase is RescalePhase.GATHERING
    assert run.wait.paused
    run.left("b")
    run.join("c")
    run.ready("c")
    run.advance(0.3)
    assert run.members == ["a", "c"]


def test_the_last_member_leaves():
    """All are asked to leave and nobody is there to go on: the run is finished."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.leave("a", "b")
    run.advance(0.2)
    run.answer("a", "b")
    assert run.directive.leaving == ("a#1", "b#1")
    run.left("a")
    assert run.phase is RescalePhase.STOPPING
    run.left("b")
    assert run.phase is RescalePhase.FINISHED
    assert (run.directive.kind, run.directive.reason) == (DirectiveKind.FINISH, "last member left")


def test_the_last_member_leaves_a_run_that_is_resumed():
    """With `resume` the run waits, and the next node goes on."""
    run = SimulatedRun(min_nodes=1, resume=True)
    run.start("a", "b")
    run.leave("a", "b")
    run.advance(0.2)
    run.answer("a", "b")
    run.left("a")
    run.left("b")
    assert run.phase is RescalePhase.GATHERING
    assert run.wait.paused
    run.join("c")
    run.ready("c")
    run.advance(0.3)
    assert run.members == ["c"]


def test_the_last_one_waits_for_a_newcomer_that_starts():
    """It leaves when the newcomer has taken its state over."""
    run = SimulatedRun(min_nodes=1)
    run.start("a")
    run.leave("a")
    run.join("b")
    run.advance(20.0)
    assert (run.phase, run.wait.until) == (RescalePhase.STABLE, None)
    assert run.wait.reason == "1 of 4 nodes: a leaves, and waits for b to take its state over"
    run.ready("b")
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["a", "b"]
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["b"]
    assert "no survivor" not in run.generation.reason


@pytest.mark.parametrize("why", ["its grace period presses", "the newcomer goes"])
def test_the_last_one_waits_no_longer(why):
    """Its agent says that time is up: it leaves, the run is not over, and the newcomer goes on from what it left behind."""
    run = SimulatedRun(min_nodes=1)
    run.start("a")
    run.join("b")
    run.leave("a")
    run.advance(20.0)
    assert run.phase is RescalePhase.STABLE
    if why == "the newcomer goes":
        run.gone("b")
    else:
        run.press("a")
    run.advance(0.3)
    run.answer("a")
    assert run.directive.leaving == ("a#1",)
    run.left("a")
    if why == "the newcomer goes":
        assert run.phase is RescalePhase.FINISHED
        return
    assert run.phase is RescalePhase.GATHERING
    run.ready("b")
    run.advance(0.3)
    assert (run.members, run.generation.trained) == (["b"], True)
    assert "no survivor" in run.generation.reason


def test_all_leave_while_a_newcomer_is_ready():
    """The first leaver stays for one generation and hands the state over, then leaves."""
    run = SimulatedRun(min_nodes=1, max_nodes=2)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.leave("a", "b")
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["a", "c"]
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["c"]
    assert "no survivor" not in run.generation.reason


def test_one_place_only_cannot_hand_over():
    """max_nodes is 1: the spare starts from what it loaded."""
    run = SimulatedRun(min_nodes=1, max_nodes=1)
    run.start("a")
    run.join("b")
    run.ready("b")
    run.leave("a")
    run.advance(0.2)
    run.planned_rescale()
    run.advance(0.3)
    assert run.members == ["b"]
    assert "no survivor of generation 1" in run.generation.reason


def test_a_leaver_that_dies_while_draining_is_no_failure():
    """It dies before the boundary: the others may be stuck with it and re-form, but nothing is counted."""
    run = SimulatedRun(min_nodes=1, max_consecutive_failures=0)
    run.start("a", "b")
    run.leave("b")
    run.advance(0.2)
    run.answer("a", "b")
    run.gone("b")
    assert run.directive.kind is DirectiveKind.FAIL
    assert (run.directive.failed, run.directive.departed) == ((), ("b#1",))
    run.ready("a")
    assert run.members == ["a"]
    assert run.generation.failures == ()
    assert run.generation.num_consecutive_failures == 0
    assert run.generation.kind == "leave"


def test_a_leaver_that_vanishes_at_the_boundary_disturbs_nobody():
    """Its last record was missed, but another member had come to the same boundary: it had been there."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b", "c")
    run.leave("c")
    run.advance(0.2)
    run.answer("a", "b", "c")
    run.ready("a")
    run.gone("c")
    assert run.phase is RescalePhase.STOPPING
    run.ready("b")
    assert run.members == ["a", "b"]
    assert run.generation.kind == "leave"


def test_a_leave_during_the_stop_waits_for_the_next_rescale():
    """Who leaves is settled with STOP: the late leaver enters one more generation and leaves from there."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.answer("a", "b")
    run.leave("b")
    run.ready("a", "b")
    assert run.members == ["a", "b", "c"]
    run.train()
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["a", "c"]


@pytest.mark.parametrize("silent", ["a", "b"])
def test_silence_to_prepare_is_death(silent):
    """One member's listener never answers: after rescale_timeout it is put out and the other goes on."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    other = "b" if silent == "a" else "a"
    run.answer(other)
    run.advance(run.settings.rescale_timeout - 0.1)
    assert run.phase is RescalePhase.PREPARING
    run.advance(0.2)
    assert run.directive.failed == (f"{silent}#1",)
    run.ready(other)
    assert run.members == [other]
    assert run.generation.failures[0].reason == "did not say its boundary within 60 s"


def test_a_long_way_to_the_boundary_is_no_death():
    """A validation takes ten minutes between two boundaries: nobody is put out."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.answer("a", "b")
    run.advance(600)
    assert run.phase is RescalePhase.STOPPING
    assert run.wait.until is None


def test_a_member_that_never_comes_to_the_boundary():
    """The first was there rescale_timeout ago: the one still missing is stuck, and put out."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.answer("a", "b")
    run.advance(30)
    run.ready("a")
    run.advance(run.settings.rescale_timeout)
    assert run.directive.failed == ("b#1",)
    assert run.members == ["a"]


def test_a_stop_with_everybody_there_needs_no_failure():
    """A member dies at the boundary, all others are there already: it is dropped, with no extra round."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.answer("a", "b")
    run.ready("a")
    run.gone("b")
    assert run.directive.kind is DirectiveKind.STOP
    assert run.members == ["a", "c"]
    assert run.generation.kind == "mixed"
    assert [failure.member for failure in run.generation.failures] == ["b#1"]


def test_draining_without_the_flag_is_leaving_too():
    """A record in state draining counts as a leaver."""
    run = SimulatedRun(min_nodes=1)
    run.start("a", "b")
    run.change("b", state=WorkerState.DRAINING)
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["a"]


@pytest.mark.parametrize(
    ("others", "stays"),
    [
        ([], False),
        ([{"node": "b"}], True),
        ([{"node": "b", "state": WorkerState.SYNCING}], True),
        ([{"node": "b", "state": WorkerState.LEFT}], False),
        ([{"node": "b", "leaving": True}], False),
        ([{"node": "b"}, {"node": "m"}], False),
        ([{"node": "b"}, {"node": "m", "leaving": True}], True),
        ([{"node": "b"}, {"node": "m", "state": WorkerState.FAILED}], True),
        ([{"node": "m", "incarnation": 2}], True),
    ],
)
def test_a_waiting_leaver_hands_its_state_over(others, stays):
    """It enters one more generation only if nobody else holds the state and somebody is there to take it.

    `m` is the other member; in its second incarnation it is a newcomer.
    """
    run = SimulatedRun()
    run.start("a", "m")
    mine = replace(run.records["a"], leaving=True)
    records = [mine, *(NodeRecord(host="h", num_workers=2, **fields) for fields in others)]
    assert stays_for_newcomers(run.generation, records, "a", 4) is stays
    assert not stays_for_newcomers(run.generation, records, "a", 1), "there is no place beside it"
    assert not stays_for_newcomers(run.generation, [replace(mine, pressed=True), *records[1:]], "a", 4)
