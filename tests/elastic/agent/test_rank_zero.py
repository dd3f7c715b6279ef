"""Exactly one node does what rank zero does in set-up, in whatever order agents and workers come and go."""

from __future__ import annotations

from dtf_lightning.elastic.link import messages
from support.elastic.agents import FakeNode, FakeWorker, members


def ranks(*nodes: FakeNode) -> list[int]:
    return [welcome.rank for node in nodes for welcome in node.welcomes]


def registered(cluster, name: str) -> FakeNode:
    """A node whose worker has been started, and imports."""
    node = cluster.agent(name)
    node.agent.await_start()
    node.agent.workers_starting(1)
    cluster.wait_for(lambda view: name in view.nodes)
    return node


def say_hello(node: FakeNode) -> None:
    node.workers.append(FakeWorker(node.socket_path, 0, pid=0, heartbeats=True))
    node.welcomes = [node.worker.expect(messages.Welcome)]


def test_the_first_whose_workers_come(cluster):
    """`a` has registered first, but its workers import for long: `b`'s are rank zero, and stay so in generation 1."""
    a = registered(cluster, "a")
    b = cluster.node("b")
    say_hello(a)
    assert [rank == 0 for rank in ranks(a, b)] == [False, True]
    cluster.all_ready(a, b)
    assert members(a.worker.train()) == ["b#1", "a#1"]


def test_a_node_that_registers_anew(cluster):
    """Its key is away for a moment in set-up (a lease that was lost): it does not become the last, nor a second zero."""
    a, b = cluster.node("a"), registered(cluster, "b")
    record = cluster.view.nodes["b"]
    cluster.store.delete(cluster.view.keys.node("a"))
    cluster.wait_for(lambda view: "a" in view.nodes and view.nodes["a"].order > record.order)
    say_hello(b)
    assert [rank == 0 for rank in ranks(a, b)] == [True, False]
    cluster.all_ready(b, a)
    assert members(b.worker.train()) == ["a#1", "b#1"]


def test_rank_zero_dies_in_set_up(cluster):
    """The next node whose workers come is rank zero then; the one that was welcomed meanwhile is not asked again."""
    a, b = cluster.node("a"), cluster.node("b")
    a.agent.leave("SIGTERM")
    a.worker.expect(messages.Finish)
    a.close()
    cluster.wait_for(lambda view: "a" not in view.nodes)
    c = cluster.node("c")
    assert [rank == 0 for rank in ranks(a, b, c)] == [True, False, True]
    cluster.all_ready(b, c)
    assert members(b.worker.train()) == ["c#1", "b#1"]


def test_a_new_run_has_a_rank_zero_of_its_own(cluster):
    """The claim of a run that is over does not count for the next run under its id."""
    (a,) = cluster.training("a")
    a.worker.say(messages.Finished(generation=1, step=3))
    a.worker.expect(messages.Finish)
    a.close()
    b = cluster.node("b")
    assert ranks(b) == [0]
