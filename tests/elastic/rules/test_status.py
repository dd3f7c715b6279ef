"""What `dtf status` shows of the core."""

from __future__ import annotations

from dtf_lightning.elastic.rules.status import Role, describe, node_statuses
from support.elastic.simulated_run import SimulatedRun


def roles(run: SimulatedRun) -> dict[str, Role]:
    return {f"{s.node}#{s.incarnation}": s.role for s in node_statuses(run.settings, run.state)}


def lines(run: SimulatedRun) -> list[str]:
    return describe(run.settings, run.state, run.now, run.wall)


def test_before_the_first_generation():
    """Who is here, and what is missing."""
    run = SimulatedRun(min_nodes=2)
    run.join("a", "b")
    run.ready("a")
    assert lines(run) == [
        "no generation yet",
        "gathering: 1 of 2 nodes ready, waiting for b",
        "  a#1 joiner, syncing, no rank",
        "  b#1 starting, joining, no rank",
    ]


def test_a_full_run():
    """Members with their ranks, a leaver, a spare."""
    run = SimulatedRun(max_nodes=2)
    run.start("a", "b")
    run.join("e")
    run.ready("e")
    run.leave("b")
    assert lines(run) == [
        "generation 1 (start): a#1, b#1 joined: 0 -> 2 nodes, 4 workers",
        "stable: 2 of 2 nodes: e joins, b leaves, waiting 0.2 s for more changes",
        "  a#1 member, active, ranks 0-1",
        "  b#1 leaver, draining, ranks 2-3 (SIGTERM)",
        "  e#1 spare, syncing, no rank",
    ]


def test_the_dead_and_the_ended():
    """A failed member is out with its reason; a newcomer that failed has ended."""
    run = SimulatedRun()
    run.start("a", "b")
    run.crash("b")
    run.join("x")
    run.crash("x")
    assert roles(run) == {"a#1": Role.MEMBER, "b#1": Role.OUT, "x#1": Role.ENDED}
    assert "  b#1 out, failed, ranks 2-3 (worker 0 was killed by signal 9)" in lines(run)


def test_a_member_whose_key_is_away():
    """After an etcd outage, before it has registered again."""
    run = SimulatedRun()
    run.start("a", "b")
    del run.records["b"]
    run.take_over(reachable=("b",))
    assert "  b#1 member, away, ranks 2-3" in lines(run)


def test_the_end():
    """A finished run says why."""
    run = SimulatedRun()
    run.start("a")
    run.finish("a")
    assert lines(run)[1] == "finished: 1 of 1 members finished"


def test_looking_changes_nothing():
    """A deadline has passed, but it is the leader's to act on it."""
    run = SimulatedRun()
    run.start("a")
    run.join("b")
    run.ready("b")
    run.now += 5
    before = run.state
    assert "b joins" in lines(run)[1]
    assert run.state is before
