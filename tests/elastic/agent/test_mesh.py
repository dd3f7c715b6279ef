"""Links between agents: who is dead, who answers, and what proves nothing."""

from __future__ import annotations

import queue
import socket

import pytest

from dtf_lightning.elastic.agent.inbox import PeerAnswered, PeerDead
from dtf_lightning.elastic.agent.mesh import Mesh
from dtf_lightning.elastic.agent.peers import PROBE_INTERVAL, PROBE_TIMEOUT, Peers
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys
from support.store_worlds import ManualClock


@pytest.fixture
def make():
    made: list[Mesh] = []

    def make(name: str, port_of: Mesh | None = None) -> tuple[Mesh, queue.Queue]:
        events: queue.Queue = queue.Queue()
        made.append(Mesh(name, events.put, host="127.0.0.1"))
        made[-1].start()
        return made[-1], events

    yield make
    for mesh in made:
        mesh.close()


def test_answers_a_probe(make):
    """A peer that lives answers every probe, also one that was sent before the link was up."""
    (a, heard), (b, _) = make("a"), make("b")
    a.watch({"b": ("127.0.0.1", b.port)})
    a.probe("b")
    assert heard.get(timeout=60) == PeerAnswered("b")
    a.probe("b")
    assert heard.get(timeout=60) == PeerAnswered("b")


def test_dead_peer(make):
    """The link closes and the port refuses: dead, said once."""
    (a, heard), (b, _) = make("a"), make("b")
    a.watch({"b": ("127.0.0.1", b.port)})
    a.probe("b")
    heard.get(timeout=60)
    b.close()
    event = heard.get(timeout=60)
    assert isinstance(event, PeerDead)
    assert event.node == "b"
    assert heard.empty()


def test_port_was_taken_by_another(make):
    """The peer is gone and another agent listens on its port: dead too."""
    (a, heard), (c, _) = make("a"), make("c")
    a.watch({"b": ("127.0.0.1", c.port)})
    event = heard.get(timeout=60)
    assert event == PeerDead("b", "another process listens on its port")


def test_broken_link_is_no_death(make):
    """A link that breaks while the peer listens on is made anew, and nothing is said."""
    (a, heard), (b, _) = make("a"), make("b")
    a.watch({"b": ("127.0.0.1", b.port)})
    a.probe("b")
    heard.get(timeout=60)
    for link in list(a._links.values()):
        link.socket.shutdown(socket.SHUT_RDWR)
    a.probe("b")
    assert heard.get(timeout=60) == PeerAnswered("b")


def test_silent_port_is_no_death(make):
    """Something accepts and says nothing, like a frozen host: no verdict, and no answer to a probe."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        a, heard = make("a")
        a.watch({"b": ("127.0.0.1", silent.getsockname()[1])})
        a.probe("b")
        with pytest.raises(queue.Empty):
            heard.get(timeout=0.2)


class Probes:
    """A mesh that only counts."""

    port = 1

    def __init__(self) -> None:
        self.asked: list[str] = []

    def probe(self, node: str) -> None:
        self.asked.append(node)


@pytest.fixture
def looking():
    """An agent that has just seen that the key of `b` is gone, and its clock."""
    clock = ManualClock()
    peers = Peers("a", RunKeys("r"), Probes(), clock)  # type: ignore[arg-type]
    assert peers.unlisted(NodeRecord(node="b", host="h", num_workers=1)) is None
    assert peers.overdue() == []
    return peers, clock


def test_silence_while_this_agent_listens_is_a_death(looking):
    """It looks whenever a probe is due, and nothing comes."""
    peers, clock = looking
    said = []
    while not said:
        clock.now = peers.deadline.at
        said = peers.overdue()
    assert [node for node, _ in said] == ["b"]
    assert clock.now == 1000.0 + PROBE_TIMEOUT
    assert len(peers.mesh.asked) == 1 + int(PROBE_TIMEOUT / PROBE_INTERVAL)


def test_silence_while_this_agent_stood_still_proves_nothing(looking):
    """It got no processor for ten seconds: the answer lies unread in its inbox. It asks again, and then it counts."""
    peers, clock = looking
    clock.now += 10.0
    asked = len(peers.mesh.asked)
    assert peers.overdue() == []
    assert peers.mesh.asked[asked:] == ["b"]
    peers.answered("b")
    clock.now += PROBE_INTERVAL
    assert peers.overdue() == []
    said = []
    while not said:
        clock.now = peers.deadline.at
        said = peers.overdue()
    assert [node for node, _ in said] == ["b"]
