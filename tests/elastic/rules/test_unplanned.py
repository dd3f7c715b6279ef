"""Members that die, freeze, lie or report a broken generation."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.rules.records import WorkerState
from dtf_lightning.elastic.rules.state import RescalePhase
from support.elastic.simulated_run import SimulatedRun


def failures(run: SimulatedRun) -> list[tuple[str, str]]:
    return [(failure.member, failure.reason) for failure in run.state.failures]


def test_a_worker_is_killed():
    """Its agent says so: FAIL names it, survivors unwind, and form without it in the same order."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.crash("a")
    assert (run.directive.kind, run.directive.target, run.directive.failed) == (DirectiveKind.FAIL, 2, ("a#1",))
    assert run.directive.reason == "a#1 failed (worker 0 was killed by signal 9): 2 of 3 members go on"
    run.ready("c")
    assert run.wait.reason == "1 of 2 survivors unwound, waiting for b"
    run.ready("b")
    assert run.members == ["b", "c"]
    assert run.generation.kind == "failure"
    assert failures(run) == [("a#1", "worker 0 was killed by signal 9")]


def test_a_node_is_gone():
    """Its key vanishes without a word."""
    run = SimulatedRun()
    run.start("a", "b")
    run.gone("b", "its agent does not answer: connection refused")
    run.ready("a")
    assert run.members == ["a"]
    assert failures(run) == [("b#1", "its agent does not answer: connection refused")]


def test_joiners_come_after_the_failure():
    """A joiner is ready when a member dies: survivors go on without it first, so that their pause is short."""
    run = SimulatedRun()
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.crash("b")
    run.ready("a")
    assert run.members == ["a"]
    run.train()
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["a", "c"]


def test_several_at_once():
    """Two of four die before anybody has unwound: one FAIL, one new generation."""
    run = SimulatedRun()
    run.start("a", "b", "c", "d")
    run.crash("b")
    run.gone("d")
    run.ready("a", "c")
    assert run.members == ["a", "c"]
    assert run.generation.number == 2
    assert [directive.kind for directive in run.directives] == [DirectiveKind.FAIL]
    assert run.generation.num_consecutive_failures == 1


def test_a_death_while_forming():
    """A second member dies after it had unwound, before the last one is ready: it is dropped, no second FAIL."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.crash("c")
    run.ready("b")
    run.gone("b")
    run.ready("a")
    assert run.members == ["a"]
    assert len(run.directives) == 1


def test_a_death_after_the_generation_was_written():
    """It dies before it took its place: FAIL for the generation after next."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.crash("c")
    run.ready("a", "b")
    assert run.generation.number == 2
    run.crash("b")
    assert (run.directive.kind, run.directive.target) == (DirectiveKind.FAIL, 3)
    assert run.wait.reason == "0 of 1 survivors unwound, waiting for a"
    run.ready("a")
    assert run.members == ["a"]
    assert run.generation.number == 3
    assert run.generation.num_consecutive_failures == 2


def test_a_newcomer_dies_right_after_it_was_let_in():
    """The member that joined fails in its first generation: the others go on without it."""
    run = SimulatedRun()
    run.start("a")
    run.join("b")
    run.ready("b")
    run.advance(0.2)
    run.planned_rescale()
    run.crash("b")
    run.ready("a")
    assert run.members == ["a"]


@pytest.mark.parametrize("phase", [RescalePhase.PREPARING, RescalePhase.STOPPING])
def test_a_death_in_a_planned_rescale(phase):
    """The rescale turns into an unplanned one with the same target; the joiner comes afterwards."""
    run = SimulatedRun()
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    if phase is RescalePhase.STOPPING:
        run.answer("a", "b")
    assert run.phase is phase
    run.crash("b")
    assert (run.directive.kind, run.directive.target) == (DirectiveKind.FAIL, 2)
    run.ready("a")
    assert run.members == ["a"]


def test_a_frozen_member_is_put_out():
    """It does not unwind: after rescale_timeout a second FAIL names it, and the others go on."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.crash("c")
    run.ready("a")
    run.advance(59.9)
    assert run.phase is RescalePhase.REFORMING
    run.advance(0.1)
    assert run.directive.failed == ("c#1", "b#1")
    assert run.directive.target == 2
    assert run.members == ["a"]
    assert failures(run)[1] == ("b#1", "did not unwind within 60 s")


def test_the_one_put_out_wakes_up():
    """A frozen member thaws after it was put out: its record counts for nothing until it starts its workers anew."""
    run = SimulatedRun()
    run.start("a", "b")
    run.suspect("a")
    run.ready("a")
    run.advance(60)
    assert run.members == ["a"]
    run.train()
    run.ready("b")
    run.change("b", ready_after=1, generation=1)
    run.advance(100)
    assert run.phase is RescalePhase.STABLE
    run.restart("b")
    run.ready("b")
    run.advance(0.2)
    run.planned_rescale()
    assert run.members == ["a", "b#2"]


def test_a_stray_of_an_older_generation_is_not_let_in():
    """A leader that never knew the failure finds a ready node that was in generation 1: it must start anew."""
    run = SimulatedRun()
    run.start("a", "b")
    run.join("stray", generation=1, ready_after=1, state=WorkerState.SYNCING)
    run.advance(10)
    assert run.phase is RescalePhase.STABLE
    assert run.members == ["a", "b"]


def test_a_report_without_a_dead_member():
    """A collective failed and everybody lives: the same members form again, and it counts as one unplanned rescale."""
    run = SimulatedRun()
    run.start("a", "b")
    run.suspect("b")
    assert run.directive.kind is DirectiveKind.FAIL
    assert (run.directive.failed, run.directive.suspects) == ((), ("b#1",))
    assert run.directive.reason == "b#1 reported generation 1 as broken: 2 of 2 members go on"
    run.ready("a", "b")
    assert run.members == ["a", "b"]
    assert run.generation.kind == "failure"
    assert run.generation.num_consecutive_failures == 1
    assert failures(run) == [("b#1", "all-reduce: Connection closed by peer")]
    assert run.state.failures[0].num_workers == 0


def test_an_old_report_is_nothing_new():
    """The record still says `suspect: 1` in generation 2."""
    run = SimulatedRun()
    run.start("a", "b")
    run.suspect("a", "b")
    run.ready("a", "b")
    run.train()
    run.advance(100)
    assert run.phase is RescalePhase.STABLE
    assert run.generation.number == 2


def test_a_report_before_the_death_is_known():
    """The peer's socket breaks before its agent speaks: one FAIL, one rescale, the dead one is left out."""
    run = SimulatedRun()
    run.start("a", "b")
    run.suspect("a")
    run.crash("b")
    run.ready("a")
    assert run.members == ["a"]
    assert len(run.directives) == 1
    assert run.generation.num_consecutive_failures == 1


def test_workers_restarted_unseen():
    """The watch only shows the next incarnation: the earlier one counts as failed, the new one as a newcomer."""
    run = SimulatedRun()
    run.start("a", "b")
    run.restart("b")
    assert run.directive.failed == ("b#1",)
    assert "incarnation 2" in failures(run)[0][1]
    run.ready("a")
    assert run.members == ["a"]


def test_late_words_of_an_ended_incarnation():
    """A record of incarnation 1 arrives when incarnation 2 is here: ignored."""
    run = SimulatedRun()
    run.start("a", "b")
    late = run.records["b"]
    run.crash("b")
    run.restart("b")
    second = run.records["b"]
    run.write(late)
    assert run.state.nodes["b"] == second


def test_an_illegal_transition_is_a_failure():
    """A member's record goes from active back to joining: it is put out, and the reason prints its history."""
    run = SimulatedRun()
    run.start("a", "b")
    run.change("b", state=WorkerState.JOINING)
    assert run.directive.failed == ("b#1",)
    reason = failures(run)[0][1]
    assert "b#1: active -> joining is not allowed (active may be followed by draining, failed, left, syncing)" in reason
    assert "history, oldest first: joining -> syncing -> active" in reason


def test_a_changed_number_of_workers_is_a_failure():
    """An incarnation says 3 workers after it said 2: ranks would not be dense."""
    run = SimulatedRun()
    run.start("a", "b")
    run.change("b", num_workers=3)
    assert run.directive.failed == ("b#1",)


def test_a_newcomer_that_breaks_the_rules_is_ignored():
    """Its incarnation is not let in; nobody else notices."""
    run = SimulatedRun()
    run.start("a")
    run.join("b")
    run.ready("b")
    run.change("b", state=WorkerState.JOINING)
    run.ready("b")
    run.advance(10)
    assert run.phase is RescalePhase.STABLE
    assert run.members == ["a"]


def test_a_member_that_leaves_unasked():
    """It says `left` in the middle of training: no failure, but the others cannot go on with it and re-form."""
    run = SimulatedRun()
    run.start("a", "b")
    run.change("b", state=WorkerState.LEFT)
    assert (run.directive.kind, run.directive.failed, run.directive.departed) == (DirectiveKind.FAIL, (), ("b#1",))
    run.ready("a")
    assert run.members == ["a"]
    assert run.generation.failures == ()
    assert run.generation.kind == "leave"


def test_the_only_node_restarts():
    """A run of one node: its worker dies, its agent starts it anew, and the run starts from what that loaded."""
    run = SimulatedRun()
    run.start("a")
    run.crash("a")
    assert run.phase is RescalePhase.GATHERING
    run.restart("a")
    run.ready("a")
    run.advance(0.3)
    assert run.members == ["a#2"]
    assert "no survivor" in run.generation.reason


def test_a_leaver_overtaken_by_a_failure():
    """It unwinds with the others, enters the next generation and leaves from there."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.leave("b")
    run.crash("c")
    run.ready("a", "b")
    assert run.members == ["a", "b"]
    run.train()
    run.advance(0.3)
    run.planned_rescale()
    assert run.members == ["a"]
    assert [failure.member for failure in run.state.failures] == ["c#1"]


def test_unknown_nodes_do_not_matter():
    """NodeGone for a node that nobody knows, a failed record of one that never joined."""
    run = SimulatedRun()
    run.start("a")
    run.join("x")
    run.crash("x")
    run.gone("x")
    run.join("y")
    run.gone("y")
    run.advance(10)
    assert run.phase is RescalePhase.STABLE
    assert run.directives == []
