"""A new leader goes on from the keys, in whatever phase its predecessor died."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.membership import take_over
from dtf_lightning.elastic.rules.state import DepartureKind, RescalePhase
from support.elastic.simulated_run import INSTANCE, SimulatedRun


def test_in_every_phase_of_a_planned_rescale():
    """The leader changes after each event of a join: the same generation comes out, written by the last."""
    run = SimulatedRun()
    run.start("a", "b")
    run.take_over()
    run.join("c")
    run.take_over()
    run.ready("c")
    run.advance(0.1)
    run.take_over()
    assert run.phase is RescalePhase.STABLE
    run.advance(0.2)
    assert run.phase is RescalePhase.PREPARING
    run.take_over()
    run.answer("a", boundary=5)
    run.take_over()
    assert run.phase is RescalePhase.PREPARING
    run.answer("b", boundary=6)
    run.take_over()
    assert run.phase is RescalePhase.STOPPING
    assert run.state.directive is not None
    assert run.state.directive.boundary == 8
    run.ready("a")
    run.take_over()
    run.ready("b")
    assert run.members == ["a", "b", "c"]
    assert run.generation.epoch == run.epoch == 8
    assert len(run.directives) == 2


def test_in_the_middle_of_a_leave():
    """STOP names a leaver; it is gone when the new leader looks: it left."""
    run = SimulatedRun(max_consecutive_failures=0)
    run.start("a", "b", "c")
    run.leave("c")
    run.advance(0.2)
    run.answer("a", "b", "c")
    run.ready("a")
    del run.records["c"]
    run.take_over()
    assert run.phase is RescalePhase.STOPPING
    run.ready("b")
    assert run.members == ["a", "b"]
    assert run.generation.failures == ()


def test_while_unwinding():
    """FAIL is out; who had failed is not asked again, and is counted."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    run.crash("b")
    run.ready("a")
    run.gone("b")
    run.take_over()
    assert run.phase is RescalePhase.REFORMING
    assert len(run.directives) == 1
    run.ready("c")
    assert run.members == ["a", "c"]
    assert [failure.member for failure in run.generation.failures] == ["b#1"]
    assert run.generation.num_consecutive_failures == 1


def test_while_unwinding_after_a_report():
    """FAIL without a dead member: it counts as an unplanned rescale for the new leader too."""
    run = SimulatedRun()
    run.start("a", "b")
    run.suspect("a")
    run.take_over()
    run.ready("a", "b")
    assert run.members == ["a", "b"]
    assert run.generation.num_consecutive_failures == 1


def test_a_leaver_that_had_died():
    """FAIL says that it departed without being a failure: so it stays, though its node is back as incarnation 2."""
    run = SimulatedRun(max_consecutive_failures=0)
    run.start("a", "b")
    run.leave("b")
    run.crash("b")
    run.restart("b")
    run.take_over()
    run.ready("a")
    assert run.members == ["a"]
    assert run.generation.failures == ()


def test_in_the_pause():
    """Paused below the minimum: the new leader waits as well."""
    run = SimulatedRun(min_nodes=2)
    run.start("a", "b")
    run.gone("b")
    run.ready("a")
    run.take_over()
    assert run.phase is RescalePhase.GATHERING
    assert run.wait.paused
    run.join("c")
    run.ready("c")
    run.advance(0.3)
    assert run.members == ["a", "c"]


def test_the_leaders_own_node_died():
    """A member without a record is gone: FAIL."""
    run = SimulatedRun()
    run.start("a", "b")
    del run.records["a"]
    run.take_over()
    assert run.directive.failed == ("a#1",)
    assert run.state.failures[0].reason == "it was gone when a new leader took over"


def test_members_whose_keys_are_away():
    """etcd lost all leases, agents answer on the mesh: nobody is put out, and they register again."""
    run = SimulatedRun()
    run.start("a", "b")
    record = run.records.pop("b")
    run.take_over(reachable=("b",))
    run.advance(100)
    assert run.phase is RescalePhase.STABLE
    run.write(record)
    assert run.phase is RescalePhase.STABLE
    assert run.directives == []


def test_a_member_that_was_away_does_not_come_back():
    """The driver gives up on it: NodeGone for a node that has no record."""
    run = SimulatedRun()
    run.start("a", "b")
    record = run.records.pop("b")
    run.take_over(reachable=("b",))
    run.records["b"] = record
    run.gone("b", "it did not register again")
    assert run.directive.failed == ("b#1",)


@pytest.mark.parametrize(
    ("kind", "phase"), [(DirectiveKind.FINISH, RescalePhase.FINISHED), (DirectiveKind.ABORT, RescalePhase.ABORTED)]
)
def test_after_the_end(kind, phase):
    """FINISH or ABORT is out: it stays over."""
    run = SimulatedRun()
    run.start("a")
    run.directives.append(Directive(kind=kind, target=2, reason="so it was"))
    run.take_over()
    assert run.phase is phase
    assert run.wait.reason == f"{phase.value}: so it was"


def test_an_old_directive_is_done():
    """The directive that led to the current generation is still in its key: nothing is asked."""
    run = SimulatedRun()
    run.start("a", "b")
    run.crash("b")
    run.ready("a")
    run.take_over()
    assert run.phase is RescalePhase.STABLE
    assert run.state.directive is None


def test_a_generation_of_another_instance_is_none():
    """The keys of an earlier run were left over: numbers start again."""
    run = SimulatedRun()
    run.start("a")
    state = take_over(
        run.settings,
        epoch=9,
        instance="another",
        generation=run.generation,
        directive=None,
        records=[],
        now=0.0,
        wall=0.0,
    )
    assert state.generation == Generation(number=0)
    assert state.phase is RescalePhase.GATHERING


def test_a_directive_without_a_generation_means_nothing():
    """PREPARE for generation 1 cannot be: gathering goes on."""
    run = SimulatedRun()
    state = take_over(
        run.settings,
        epoch=9,
        instance=INSTANCE,
        generation=None,
        directive=Directive(kind=DirectiveKind.PREPARE, target=1),
        records=[],
        now=0.0,
        wall=0.0,
    )
    assert (state.phase, state.directive) == (RescalePhase.GATHERING, None)


def test_failed_ids_are_remembered():
    """A member failed generations ago and is listed in the history: its record means nothing to a new leader."""
    run = SimulatedRun()
    run.start("a", "b")
    record = run.records["b"]
    run.gone("b")
    run.ready("a")
    run.train()
    run.take_over()
    assert run.state.retired == {"a": 0, "b": 1}
    run.write(record)
    run.advance(10)
    assert run.phase is RescalePhase.STABLE


def test_an_incarnation_older_than_the_members():
    """The generation holds b#2; a record of b#1 turns up."""
    run = SimulatedRun()
    run.start("a", "b")
    old = run.records["b"]
    run.crash("b")
    run.ready("a")
    run.train()
    run.restart("b")
    run.ready("b")
    run.advance(0.3)
    run.planned_rescale()
    del run.records["b"]
    run.take_over(reachable=("b",))
    run.records["b"] = old
    run.write(old)
    assert run.phase is RescalePhase.STABLE
    assert run.state.departures == {}


def test_a_death_explains_the_report():
    """A member is gone and another reports the generation as broken: only the dead one is a failure."""
    run = SimulatedRun()
    run.start("a", "b", "c")
    del run.records["c"]
    run.records["a"] = replace(run.records["a"], suspect=1)
    run.take_over()
    assert (run.directive.failed, run.directive.suspects) == (("c#1",), ())
    assert [failure.member for failure in run.state.failures] == ["c#1"]


def test_departures_say_how():
    """Failed, left, draining, finished: each is kept apart."""
    run = SimulatedRun(min_nodes=1, max_nodes=8)
    run.start("a", "b", "c", "d", "e")
    run.leave("b")
    run.finish("c")
    run.crash("c")
    run.crash("b")
    run.crash("d")
    run.left("e")
    kinds = {member: departure.kind for member, departure in run.state.departures.items()}
    assert kinds == {
        "c#1": DepartureKind.FINISHED,
        "b#1": DepartureKind.DRAINED,
        "d#1": DepartureKind.FAILED,
        "e#1": DepartureKind.LEFT,
    }


@pytest.mark.parametrize("untrained", [True, False])
def test_what_nobody_has_heard_of_is_only_presumed(untrained):
    """All are gone: the next leader has to assume steps; whether one was ever heard of goes with the generation, until one is made."""
    run = SimulatedRun()
    run.start("a", "b")
    told = {
        "epoch": 9,
        "instance": INSTANCE,
        "directive": None,
        "records": (),
        "now": 0.0,
        "wall": 0.0,
        "all_left": True,
    }
    state = take_over(run.settings, generation=run.generation, trained=True, untrained=untrained, **told)
    assert (state.trained, state.presumed) == (True, untrained)
    formed = replace(run.generation, trained=True, presumed=untrained)
    state = take_over(run.settings, generation=formed, trained=True, untrained=True, **told)
    assert state.presumed == untrained
