"""The first generation, and the pause below `min_nodes`."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.state import RescalePhase
from support.elastic.simulated_run import SimulatedRun


def test_waits_for_the_minimum():
    """One node of at least two is ready: nothing is formed, however long it takes, and the reason counts."""
    run = SimulatedRun(min_nodes=2)
    run.join("a")
    run.ready("a")
    run.advance(1000)
    assert run.generations == []
    assert run.wait.paused
    assert run.wait.reason == "1 of 2 nodes ready"


def test_says_who_is_not_ready():
    """Of three nodes two are ready: the reason names the third and the time left."""
    run = SimulatedRun(min_nodes=2)
    run.join("node-a", "node-b", "node-c")
    run.ready("node-a", "node-b")
    run.advance(1.6)
    assert run.wait.reason == "2 of 3 ready, waiting 0.4 s for node-c"
    assert not run.wait.paused


def test_forms_after_the_initial_window():
    """Enough nodes are ready and nothing changes for initial_window: they form in order of arrival."""
    run = SimulatedRun(min_nodes=2, max_nodes=4)
    run.join("b", "a")
    run.ready("a", "b")
    run.advance(1.9)
    assert run.generations == []
    run.advance(0.2)
    assert run.members == ["b", "a"]
    assert run.generation.kind == "start"
    assert run.generation.world_size == 4
    assert run.generation.epoch == run.epoch
    assert run.generation.formed_at == run.wall - 0.1


def test_forms_at_once_when_full():
    """max_nodes are ready: no window."""
    run = SimulatedRun(min_nodes=1, max_nodes=2)
    run.join("a", "b")
    run.ready("a")
    assert run.generations == []
    run.ready("b")
    assert run.members == ["a", "b"]


def test_a_change_starts_the_window_anew():
    """A node gets ready each second: the initial window of 2 s starts again each time."""
    run = SimulatedRun(min_nodes=1, max_nodes=8)
    run.join("a", "b", "c")
    for node in "abc":
        run.ready(node)
        run.advance(1.5)
        assert run.generations == []
    run.advance(1)
    assert run.members == ["a", "b", "c"]


def test_a_steady_stream_is_capped():
    """Nodes keep coming each second: after max_wait the first generation forms all the same."""
    run = SimulatedRun(min_nodes=1, max_nodes=100, max_wait=5.0)
    for number in range(5):
        assert run.generations == []
        run.join(f"n{number}")
        run.ready(f"n{number}")
        run.advance(1)
    assert len(run.members) == 5


def test_nodes_not_admitted_are_no_candidates():
    """An empty instance (fingerprint not compared yet) and that of an earlier run do not count."""
    run = SimulatedRun(min_nodes=1)
    run.join("a", instance="")
    run.join("b", instance="an earlier run")
    run.ready("a", "b")
    run.advance(100)
    assert run.generations == []
    assert run.wait.reason == "0 of 1 nodes ready, waiting for a, b"


def test_a_newcomer_that_fails_or_leaves_is_forgotten():
    """Before the first generation: one crashes, one is asked to leave, one vanishes. None is a failure of the run."""
    run = SimulatedRun(min_nodes=1, max_nodes=8)
    run.join("a", "b", "c", "d")
    run.ready("a", "b", "c", "d")
    run.crash("a")
    run.leave("b")
    run.gone("c")
    run.advance(10)
    assert run.members == ["d"]
    assert run.generation.failures == ()


def test_a_newcomer_may_register_again():
    """etcd lost its lease before it was in any generation; the same id comes back and is let in."""
    run = SimulatedRun(min_nodes=1)
    run.join("a")
    record = run.records["a"]
    run.gone("a")
    run.known_dead.clear()
    run.write(record)
    run.ready("a")
    run.advance(10)
    assert run.members == ["a"]


def test_pauses_below_the_minimum_and_resumes():
    """Two of two train, one dies: the survivor unwinds and waits; a newcomer comes and both go on."""
    run = SimulatedRun(min_nodes=2)
    run.start("a", "b")
    run.gone("b")
    run.ready("a")
    assert run.phase is RescalePhase.GATHERING
    assert run.wait.paused
    assert run.wait.reason == "1 of 2 nodes ready, paused after generation 1"
    run.advance(100)
    run.join("c")
    run.ready("c")
    run.advance(0.3)
    assert run.members == ["a", "c"]
    assert run.generation.kind == "mixed"
    assert "b#1 failed" in run.generation.reason
    assert "c#1 joined" in run.generation.reason


def test_a_failed_node_comes_back_as_a_newcomer():
    """The survivor waits in a pause; the failed node restarts its workers and comes back behind it."""
    run = SimulatedRun(min_nodes=2)
    run.start("a", "b")
    run.crash("a")
    run.ready("b")
    run.restart("a")
    assert run.phase is RescalePhase.GATHERING
    run.ready("a")
    run.advance(1)
    assert run.members == ["b", "a#2"]


@pytest.mark.parametrize(
    ("trained", "fresh", "how"),
    [
        (True, False, "the newcomers go on from the newest snapshot or checkpoint of this run"),
        (True, True, "the newcomers begin anew, because of fresh=true"),
        (False, False, "it had made no step, the newcomers begin"),
        (False, True, "it had made no step, the newcomers begin"),
    ],
)
def test_no_survivor(trained, fresh, how):
    """All members die at once while a newcomer waits: it forms the next world, and the reason says from where it goes on.

    The new leader knows that the run had trained although the records that said so are gone.
    """
    run = SimulatedRun(min_nodes=1, max_nodes=2, failure_tolerance=2.0, fresh=fresh)
    run.join("a", "b")
    run.ready("a", "b")
    run.advance(3.0)
    if trained:
        run.train()
    run.join("c")
    run.ready("c")
    run.gone("a")
    run.take_over()
    run.gone("b")
    run.advance(1)
    assert run.members == ["c"]
    assert f"no survivor of generation 1: {how}" in run.generation.reason
    assert (run.generation.number, run.generation.trained) == (2, trained and not fresh)


def test_a_survivor_that_dies_in_the_pause():
    """Paused with one survivor, which dies; two newcomers start anew."""
    run = SimulatedRun(min_nodes=2, failure_tolerance=2.0)
    run.start("a", "b")
    run.gone("b")
    run.ready("a")
    run.gone("a")
    run.join("c", "d")
    run.ready("c", "d")
    run.advance(1)
    assert run.members == ["c", "d"]


def test_a_survivor_that_is_not_ready_any_more():
    """A peer breaks the protocol in the pause: it is waited for, then put out, and nothing is raised."""
    run = SimulatedRun(min_nodes=3)
    run.start("a", "b", "c")
    run.gone("c")
    run.ready("a", "b")
    assert run.phase is RescalePhase.GATHERING
    run.change("b", ready_after=None)
    assert run.phase is RescalePhase.REFORMING
    run.advance(run.settings.rescale_timeout)
    assert run.directive.failed == ("c#1", "b#1")
    assert run.phase is RescalePhase.GATHERING
