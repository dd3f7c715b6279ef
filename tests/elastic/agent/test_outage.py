"""etcd away, hosts frozen, runs crashed: what stops nobody, and what is found out in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.run.keys import RunKeys
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.processes.freezing import freeze
from support.elastic.agents import FakeCluster, FakeWorker, members
from support.elastic.programs.agent_process import AgentProcess
from support.etcd_cluster import etcdctl


@pytest.fixture
def cluster(backend, run_id):
    with FakeCluster(lambda: MemoryStore(backend), run_id) as cluster:
        yield cluster


def test_death_while_etcd_is_away(cluster, backend):
    """A worker dies while etcd is away: the rescale waits, and comes when etcd is back."""
    a, b = cluster.training("a", "b")
    backend.available = False
    b.worker.die()
    assert a.worker.unread == 0
    backend.available = True
    a.worker.unwind()
    assert members(a.worker.train()) == ["a#1"]


def test_every_lease_is_lost(cluster, backend):
    """etcd was frozen and all leases expired: the agents answer each other, register again, and nobody stops."""
    a, b = cluster.training("a", "b")
    with backend.changed:
        for lease in list(backend._leases):
            backend.drop_lease(lease)
    backend.expire()
    cluster.wait_for(lambda view: set(view.nodes) == {"a", "b"} and view.leader is not None)
    assert (a.worker.unread, b.worker.unread) == (0, 0)
    c = cluster.node("c")
    c.worker.ready()
    for node in (a, b):
        node.worker.stop_at_boundary()
    assert members(a.worker.train()) == ["a#1", "b#1", "c#1"]


def test_answer_to_the_generation_is_lost(cluster, backend):
    """etcd applies the leader's write and its answer gets lost: the write is repeated, nothing happens twice."""
    a, b = cluster.training("a", "b")
    a.store.lose_answer(applied=True)
    b.worker.die()
    a.worker.unwind()
    assert members(a.worker.train()) == ["a#1"]
    assert a.worker.unread == 0


def test_new_run_after_a_crash(backend, run_id):
    """All nodes of a run vanished: whoever comes next waits until none can come back, then starts a new run.

    Only then is it known that nobody joins, and that one of them has to be rank zero.
    """
    with FakeCluster(lambda: MemoryStore(backend), run_id) as first:
        (a,) = first.training("a")
        view = first.view
        first.store.put(view.keys.run, view.run.encode())  # as if the agent had said no goodbye
        a.store.reachable = False
        a.agent.close()
        a.store.vanish()
        with backend.changed:
            for lease in list(backend._leases):
                backend.drop_lease(lease)
    with FakeCluster(lambda: MemoryStore(backend), run_id) as second:
        b, c = second.agent("b", lease_ttl=2.0), second.agent("c", lease_ttl=2.0)
        with ThreadPoolExecutor(2) as pool:  # both wait for their welcome
            for started in [pool.submit(node.start_workers) for node in (b, c)]:
                started.result()
        welcomes = [*b.welcomes, *c.welcomes]
        assert sorted(welcome.rank for welcome in welcomes)[0] == 0
        assert sum(welcome.rank == 0 for welcome in welcomes) == 1
        assert not any(welcome.joiner for welcome in welcomes)
        second.all_ready(b, c)
        generation = b.worker.train()
        zero = "b#1" if b.welcomes[0].rank == 0 else "c#1"
        assert (generation.number, members(generation)[0], len(generation.members)) == (1, zero, 2)


def test_the_run_goes_on_in_a_newcomer_that_has_seen_its_last_member(cluster, backend):
    """The only member vanishes while the newcomer sets itself up: the same run goes on, which knows that it had trained."""
    (a,) = cluster.training("a")
    a.worker.say(messages.Trained())
    cluster.wait_for(lambda view: view.nodes["a"].trained)
    instance = cluster.view.run.instance
    b = cluster.node("b")
    cluster.wait_for(lambda view: "b" in view.nodes and view.nodes["b"].witnessed == instance)
    a.store.reachable = False
    a.agent.close()
    a.store.vanish()
    with backend.changed:
        for lease in list(backend._leases):
            backend.drop_lease(lease)
    b.worker.ready()
    generation = b.worker.train()
    assert (generation.number, generation.instance, members(generation)) == (2, instance, ["b#1"])
    assert generation.trained


def test_leader_thinks_it_leads(cluster, backend):
    """The leader key goes to another while the old leader is cut off: its writes are refused, there is one line."""
    a, b = cluster.training("a", "b")
    a.store.reachable = False
    with backend.changed:
        for key in (cluster.view.keys.leader, cluster.view.keys.node("a")):
            lease = backend.find(key)[0].lease if backend.find(key) else 0
            if lease:
                backend.drop_lease(lease)
    cluster.wait_for(lambda view: view.leader is not None and view.leader.node == "b")
    c = cluster.node("c")
    c.worker.ready()
    a.store.reachable = True
    for node in (a, b):
        node.worker.stop_at_boundary()
    for node in (a, b, c):
        assert members(node.worker.train()) == ["a#1", "b#1", "c#1"]


# --- real processes --------------------------------------------------------------------------------------------------


@dataclass
class Node:
    """An agent in a process of its own, and what stands for its worker: a connection and a process id."""

    agent: AgentProcess
    worker: FakeWorker
    worker_process: subprocess.Popen[bytes]


@pytest.fixture
def train(etcd, run_id, tmp_path):
    """Starts nodes that train in one generation."""
    made: list[Node] = []

    def train(*names: str) -> list[Node]:
        # The first generation is formed when, and as soon as, all are there.
        settings = {"stability_window": 0.05, "initial_window": 60.0, "max_wait": 60.0, "lease_ttl": 20.0}
        settings["max_nodes"] = len(names)
        for name in names:
            agent = AgentProcess(etcd.endpoint, run_id, name, str(tmp_path / f"{name}.sock"), settings)
            process = subprocess.Popen(["sleep", "600"], start_new_session=True)
            made.append(Node(agent, FakeWorker(agent.socket_path, pid=process.pid), process))
            made[-1].worker.expect(messages.Welcome)
        for node in made:
            node.worker.ready()
        for node in made:
            assert len(node.worker.train().members) == len(names)
        return made

    yield train
    for node in made:
        node.agent.close()
        node.worker.die()
        node.worker_process.kill()
        node.worker_process.wait()


@pytest.mark.process
@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "other"])
def test_agent_is_killed(train, victim):
    """kill -9 of an agent: its worker sees the end, the others go on without it."""
    nodes = train("a", "b")
    dead, survivor = nodes[victim], nodes[1 - victim]
    os.kill(dead.agent.process.pid, signal.SIGKILL)
    dead.worker.expect_end()
    survivor.worker.unwind()
    assert len(survivor.worker.train().members) == 1


@pytest.mark.process
@pytest.mark.parametrize("victim", [0, 1], ids=["leader", "other"])
def test_host_freezes(train, store, run_id, etcd, victim):
    """An agent is stopped: its lease ends and the mesh has no answer, so it is out. Woken up, it ends its worker.

    The lease is not waited for: one that is short enough for a test would be lost on a busy machine by whoever is slow.
    """
    nodes = train("a", "b")
    frozen, survivor = nodes[victim], nodes[1 - victim]
    freeze(frozen.agent.process.pid)
    lease = store.get(RunKeys(run_id).node(frozen.agent.node)).lease
    etcdctl(etcd.endpoint, "lease", "revoke", f"{lease:x}")
    survivor.worker.unwind()
    assert len(survivor.worker.train().members) == 1
    os.kill(frozen.agent.process.pid, signal.SIGCONT)
    assert frozen.worker_process.wait(60) == -signal.SIGKILL
    assert survivor.worker.unread == 0


@pytest.mark.process
def test_etcd_freezes(run_id, tmp_path):
    """etcd is stopped for longer than the lease: nobody is told anything, and afterwards a join works."""
    with EmbeddedEtcd() as etcd, FakeCluster(lambda: connect(etcd.endpoint, quiet=True), run_id) as cluster:
        nodes = [cluster.agent(name, lease_ttl=2.0) for name in ("a", "b")]
        for node in nodes:
            node.start_workers()
        cluster.all_ready(*nodes)
        for node in nodes:
            node.worker.train()
        freeze(etcd.pid)
        time.sleep(2.5)  # longer than the lease; there is nothing to be notified by
        os.kill(etcd.pid, signal.SIGCONT)
        c = cluster.node("c")
        c.worker.ready()
        for node in nodes:
            node.worker.stop_at_boundary()
        assert members(nodes[0].worker.train()) == ["a#1", "b#1", "c#1"]
