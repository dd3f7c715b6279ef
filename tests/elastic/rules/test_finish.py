"""The end of training."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.rules.state import RescalePhase
from dtf_lightning.elastic.rules.stops import patience
from support.elastic.simulated_run import SimulatedRun


def test_all_finish():
    """FINISH when the last member has finished; spares and joiners hear it too."""
    run = SimulatedRun()
    run.start("a", "b")
    run.finish("a")
    assert run.wait.reason == "1 of 2 members finished, changes wait for the others"
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED
    assert (run.directive.kind, run.directive.reason) == (DirectiveKind.FINISH, "2 of 2 members finished")
    run.left("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(100)
    assert run.wait.reason == "finished: 2 of 2 members finished"
    assert len(run.directives) == 1


def test_a_member_that_dies_after_having_finished():
    """No failure, and it counts among the finished."""
    run = SimulatedRun(max_consecutive_failures=0)
    run.start("a", "b")
    run.finish("a")
    run.crash("a")
    assert run.phase is RescalePhase.STABLE
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED
    assert run.state.failures == ()


def test_one_dies_before_all_finished():
    """FAIL: the finished ones re-form too, and finish again."""
    run = SimulatedRun()
    run.start("a", "b")
    run.finish("a")
    run.crash("b")
    assert run.directive.kind is DirectiveKind.FAIL
    run.ready("a")
    assert run.members == ["a"]
    run.train()
    assert run.phase is RescalePhase.STABLE
    run.finish("a")
    assert run.phase is RescalePhase.FINISHED


def test_the_dead_one_was_the_only_unfinished():
    """All who live have finished, one died short of it: FAIL, not FINISH."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.finish("a", "b")
    run.gone("c")
    assert run.directive.kind is DirectiveKind.FAIL


def test_no_rescale_near_the_end():
    """One member has finished, a newcomer is ready, another wants to leave: nothing begins any more."""
    run = SimulatedRun()
    run.start("a", "b")
    run.finish("a")
    run.join("c")
    run.ready("c")
    run.leave("b")
    run.advance(100)
    assert run.directives == []
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED


def test_finish_overtakes_a_planned_rescale():
    """PREPARE and STOP are out, but training ends before that boundary."""
    run = SimulatedRun()
    run.start("a", "b")
    run.leave("b")
    run.advance(0.2)
    run.finish("a")
    run.answer("b")
    assert run.phase is RescalePhase.STOPPING
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED


def test_all_finish_while_preparing():
    """Nobody answers any more, all finish: FINISH without a stop."""
    run = SimulatedRun()
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.finish("a", "b")
    assert run.phase is RescalePhase.FINISHED


def test_some_finish_and_some_stop():
    """Training ends exactly at the boundary, and the members disagree on what comes first: they re-form."""
    run = SimulatedRun()
    run.start("a", "b")
    run.join("c")
    run.ready("c")
    run.advance(0.2)
    run.answer("a", "b")
    run.ready("a")
    run.finish("b")
    assert run.directive.kind is DirectiveKind.FAIL
    assert (run.directive.failed, run.directive.suspects) == ((), ())
    run.ready("b")
    assert run.members == ["a", "b"]
    assert run.generation.num_consecutive_failures == 0


def test_a_leaver_is_gone_when_the_others_finish():
    """It left at the boundary; the rest came to the end there. The run is finished."""
    run = SimulatedRun()
    run.start("a", "b")
    run.leave("b")
    run.advance(0.2)
    run.answer("a", "b")
    run.left("b")
    run.finish("a")
    assert run.phase is RescalePhase.FINISHED
    assert run.directive.reason == "1 of 1 members finished"


def test_all_die_after_having_finished():
    """Nobody is left to hear it, the run is finished all the same."""
    run = SimulatedRun()
    run.start("a", "b")
    run.finish("a")
    run.crash("a")
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED


def test_an_old_finish_is_nothing_new():
    """`finished: 1` stays in the record of a member that re-formed into generation 2."""
    run = SimulatedRun()
    run.start("a", "b")
    run.finish("a")
    run.crash("b")
    run.ready("a")
    run.train()
    run.advance(10)
    assert run.phase is RescalePhase.STABLE


def stops(run: SimulatedRun, node: str, batches: int, why: str = "worker 0 after step 7: trainer.should_stop was set"):
    run.change(node, stopped=(run.generation.number, batches), stopped_why=why)


def passes(run: SimulatedRun, node: str, batches: int):
    run.change(node, passed=(run.generation.number, batches))


@pytest.mark.parametrize("phase", [RescalePhase.STABLE, RescalePhase.PREPARING, RescalePhase.STOPPING])
def test_stopped_apart(phase: RescalePhase):
    """One stops behind batch 7, the other begins another: ABORT by name, in less than `rescale_timeout`, in every phase."""
    run = SimulatedRun()
    run.start("a", "b")
    if phase is not RescalePhase.STABLE:
        run.join("c")
        run.ready("c")
        run.advance(run.settings.max_wait)
    if phase is RescalePhase.STOPPING:
        run.answer("a", "b", boundary=7)
    assert run.phase is phase
    stops(run, "a", 7)
    passes(run, "a", 7)
    passes(run, "b", 7)
    run.advance(0.1)
    assert run.phase is phase, "nobody is ahead of anybody"
    passes(run, "b", 8)
    assert run.wait.until is not None
    run.advance(patience(run.settings))
    assert run.phase is RescalePhase.ABORTED
    assert patience(run.settings) < run.settings.rescale_timeout
    assert "a#1 stopped (worker 0 after step 7: trainer.should_stop was set), but b#1 began" in run.directive.reason
    assert 'ElasticCallback(stop="any")' in run.directive.reason


def test_a_slow_end_is_no_stop_apart():
    """The other one is at the last step's hooks, for hours: it is waited for."""
    run = SimulatedRun()
    run.start("a", "b")
    stops(run, "a", 7)
    run.finish("a")
    passes(run, "b", 7)
    run.advance(10_000)
    assert run.phase is RescalePhase.STABLE
    run.finish("b")
    assert run.phase is RescalePhase.FINISHED


def test_a_stop_that_is_withdrawn():
    """It ended the epoch only, and trains on; what the other one had passed meanwhile proves nothing."""
    run = SimulatedRun()
    run.start("a", "b")
    stops(run, "a", 7)
    passes(run, "b", 8)
    run.change("a", stopped=None, stopped_why="", passed=(1, 8))
    run.advance(10_000)
    assert run.phase is RescalePhase.STABLE


def test_a_stop_of_an_earlier_generation():
    """Batches are counted anew in each: old words of one member are not compared with new ones of another."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    stops(run, "a", 7)
    run.crash("c")
    run.ready("a", "b")
    run.train()
    passes(run, "b", 9)
    run.advance(10_000)
    assert run.phase is RescalePhase.STABLE


def test_stopped_apart_on_one_node():
    """Two workers of the same node: its record holds the first stop and the furthest boundary."""
    run = SimulatedRun(workers=2)
    run.start("a")
    stops(run, "a", 3)
    passes(run, "a", 4)
    run.advance(patience(run.settings))
    assert run.phase is RescalePhase.ABORTED
