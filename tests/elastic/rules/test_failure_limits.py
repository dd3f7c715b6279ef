"""When failures are too many, and how a new leader counts on."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.rules.failures import beyond_limits, largest_world, num_consecutive, still_count
from dtf_lightning.elastic.rules.generation import Failure, Generation, Member
from dtf_lightning.elastic.rules.state import RescalePhase
from dtf_lightning.elastic.settings import ElasticSettings
from support.elastic.simulated_run import SimulatedRun


def crash_and_come_back(run: SimulatedRun, node: str) -> None:
    """The node's workers die and start anew; the others re-form, it joins again."""
    run.crash(node)
    if run.phase is RescalePhase.ABORTED:
        return
    run.ready(*(member for member in run.live_members()))
    run.train()
    run.restart(node)
    run.ready(node)
    run.advance(0.3)
    run.planned_rescale()


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_failures_in_a_row(limit):
    """One node crashes again and again: `limit` times the run goes on, then it aborts and says who, when, why."""
    run = SimulatedRun(max_consecutive_failures=limit, failure_tolerance=100.0)
    run.start("a", "b")
    for _ in range(limit):
        crash_and_come_back(run, "b")
        assert run.phase is RescalePhase.STABLE
    run.crash("b", detail="worker 1 raised ValueError: bad batch")
    assert run.phase is RescalePhase.ABORTED
    assert run.directive.kind is DirectiveKind.ABORT
    lines = run.directive.reason.splitlines()
    assert lines[0] == (
        f"the run was aborted: {limit + 1} unplanned rescales in a row, none of which lived for 60 s "
        f"(max_consecutive_failures is {limit}):"
    )
    assert len(lines) == limit + 2
    assert lines[-1].endswith("worker 1 raised ValueError: bad batch")
    assert f"b#{limit + 1} (2 workers) in generation {2 * limit + 1}:" in lines[-1]
    assert lines[1].startswith("  2023-11-14T22:13:")


def test_a_long_life_resets_the_row():
    """Each crash comes more than failure_window after the last: the run never aborts."""
    run = SimulatedRun(max_consecutive_failures=1)
    run.start("a", "b")
    for _ in range(6):
        crash_and_come_back(run, "b")
        run.advance(61)
    assert run.phase is RescalePhase.STABLE
    assert len(run.state.failures) == 1


def test_planned_rescales_do_not_cut_a_life_short():
    """The world lives for long through many planned rescales: the row is reset though no single generation lived long."""
    run = SimulatedRun(max_consecutive_failures=1)
    run.start("a", "b")
    crash_and_come_back(run, "b")
    for node in ("c", "d", "e", "f"):
        run.advance(20)
        run.join(node)
        run.ready(node)
        run.advance(0.3)
        run.planned_rescale()
        run.leave(node)
        run.advance(0.3)
        run.planned_rescale()
    assert run.generation.num_consecutive_failures == 0


def test_share_of_the_world():
    """Two of four nodes may fail within the window at a tolerance of 0.5; the third aborts the run."""
    run = SimulatedRun(max_nodes=4, failure_tolerance=0.5)
    run.start("a", "b", "c", "d")
    run.crash("a")
    run.crash("b")
    run.ready("c", "d")
    run.train()
    assert run.phase is RescalePhase.STABLE
    run.advance(30)
    run.crash("c")
    assert run.phase is RescalePhase.ABORTED
    assert run.directive.reason.splitlines()[0] == (
        "the run was aborted: 6 workers failed within 60 s, the largest world was 8 (failure_tolerance is 0.5 of it):"
    )


@pytest.mark.parametrize("deaths", [1, 2])
def test_who_is_ended_by_anothers_death_does_not_count(deaths):
    """One of four dies in mid-transfer, gloo forgets two others, who end themselves: one failure of four, not three."""
    run = SimulatedRun(max_nodes=4, failure_tolerance=0.25)
    run.start("a", "b", "c", "d")
    run.crash("a")
    if deaths == 2:
        run.crash("b")
        assert run.phase is RescalePhase.ABORTED
        return
    for node in "bc":
        run.change(node, aftermath=True)
        run.crash(node, detail="worker 0 failed: gloo has forgotten it")
    run.ready("d")
    run.train()
    assert run.phase is RescalePhase.STABLE
    assert [(failure.member, failure.counts) for failure in run.state.failures] == [
        ("a#1", True), ("b#1", False), ("c#1", False),
    ]  # fmt: skip


def test_a_death_of_nobody_elses_counts():
    """Whatever it says of itself: where no other member has failed, it is the failure."""
    run = SimulatedRun(max_nodes=4, failure_tolerance=0.1)
    run.start("a", "b", "c", "d")
    run.change("b", aftermath=True)
    run.crash("b")
    assert run.phase is RescalePhase.ABORTED


def test_the_share_is_of_the_largest_world_in_the_window():
    """Half of the world left by agreement a moment ago: it still counts for the share."""
    run = SimulatedRun(max_nodes=4, failure_tolerance=0.25)
    run.start("a", "b", "c", "d")
    run.leave("c", "d")
    run.advance(0.3)
    run.planned_rescale()
    run.crash("b")
    run.ready("a")
    assert run.phase is RescalePhase.STABLE
    run.advance(100)
    assert largest_world(run.settings, run.generation, run.wall) == 2


def test_failures_leave_the_window():
    """The same failures, each a window apart: never more than one counts."""
    run = SimulatedRun(failure_tolerance=0.5)
    run.start("a", "b")
    for _ in range(4):
        crash_and_come_back(run, "b")
        run.advance(61)
    assert run.phase is RescalePhase.STABLE


def test_eviction_counts():
    """A frozen member that is put out is a failure like any other."""
    run = SimulatedRun(failure_tolerance=0.5)
    run.start("a", "b", "c")
    run.crash("c")
    run.ready("a")
    run.advance(61)
    assert [failure.member for failure in run.state.failures] == ["c#1", "b#1"]


def test_broken_reports_end_too():
    """Nobody dies, but every generation is reported as broken: the run aborts and lists the reports."""
    run = SimulatedRun(max_consecutive_failures=2)
    run.start("a", "b")
    for _ in range(2):
        run.suspect("a")
        run.ready("a", "b")
        run.train()
    run.suspect("a")
    assert run.phase is RescalePhase.ABORTED
    assert "a#1 (lives on) in generation 3: all-reduce: Connection closed by peer" in run.directive.reason


def test_too_many_while_unwinding():
    """More members die while the survivors unwind: the share is exceeded there and then."""
    run = SimulatedRun(failure_tolerance=0.5)
    run.start("a", "b", "c")
    run.crash("a")
    run.gone("b")
    assert run.phase is RescalePhase.ABORTED


def test_nothing_happens_after_an_abort():
    """Joins, deaths and time change nothing any more."""
    run = SimulatedRun(max_consecutive_failures=0)
    run.start("a", "b")
    run.crash("a")
    run.join("c")
    run.ready("c")
    run.gone("b")
    run.advance(1000)
    assert len(run.directives) == 1
    assert run.wait.reason.startswith("aborted: the run was aborted: 1 unplanned rescales in a row")


@pytest.mark.parametrize("unwound", [False, True])
def test_a_new_leader_counts_on(unwound):
    """Leaders change after every failure, before or after the next generation: the row is as long."""
    run = SimulatedRun(max_consecutive_failures=2, failure_tolerance=100.0)
    run.start("a", "b")
    for _ in range(2):
        run.crash("b")
        if not unwound:
            run.take_over()
        run.ready("a")
        if unwound:
            run.take_over()
        run.train()
        run.restart("b")
        run.ready("b")
        run.advance(0.3)
        run.planned_rescale()
    run.crash("b")
    assert run.phase is RescalePhase.ABORTED


SETTINGS = ElasticSettings(min_nodes=1, max_nodes=8, failure_window=60.0)
WORLD = (Member(node="a", incarnation=1, num_workers=2), Member(node="b", incarnation=1, num_workers=2))


def failure(generation: int, at: float, num_workers: int = 2) -> Failure:
    return Failure(member="b#1", generation=generation, num_workers=num_workers, at=at, reason="killed")


def test_num_consecutive_counts_a_generation_once():
    """Two members fail in one generation: one unplanned rescale."""
    generation = Generation(number=5, members=WORLD, num_consecutive_failures=3, unbroken_since=1000.0)
    assert num_consecutive(SETTINGS, generation, [failure(5, 1010.0), failure(5, 1011.0)], 1011.0) == 4
    assert num_consecutive(SETTINGS, generation, [failure(5, 1060.0)], 1060.0) == 1
    assert num_consecutive(SETTINGS, generation, [failure(4, 990.0)], 1010.0) == 3
    assert num_consecutive(SETTINGS, generation, [failure(4, 990.0)], 1060.0) == 0


def test_still_count():
    """A row remembers all its failures; without one only the window counts."""
    generation = Generation(number=5, members=WORLD, num_consecutive_failures=1, unbroken_since=1000.0)
    old, recent = failure(4, 900.0), failure(4, 999.5)
    assert still_count(SETTINGS, generation, [old, recent], 1030.0) == (old, recent)
    assert still_count(SETTINGS, generation, [old, recent], 1060.0) == ()


def test_exactly_the_tolerance_is_no_abort():
    """Strictly more than the share aborts."""
    generation = Generation(number=1, members=WORLD, unbroken_since=1000.0)
    assert beyond_limits(SETTINGS, generation, [failure(1, 1001.0), failure(1, 1001.0)], 1001.0) is None
    assert beyond_limits(SETTINGS, generation, [failure(1, 1001.0)] * 3, 1001.0) is not None
