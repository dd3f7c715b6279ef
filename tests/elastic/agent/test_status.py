"""What `dtf status` and `dtf drain` read from the keys, and their errors."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.events import Evaluated
from dtf_lightning.elastic.link.messages import Happened
from dtf_lightning.elastic.run.keys import RunPhase
from dtf_lightning.elastic.run.status import list_runs, read_status, request_drain
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from support.elastic.agents import FakeCluster


@pytest.fixture
def cluster(backend, run_id):
    with FakeCluster(lambda: MemoryStore(backend), run_id) as cluster:
        yield cluster


def test_status(cluster):
    """A run that trains, with a node that sets itself up: members with ranks, the newcomer, leader and reason."""
    cluster.training("a", "b")
    cluster.node("c")
    cluster.wait_for(lambda view: view.status is not None and "c is not ready" in view.status.reason)
    status = read_status(cluster.store, cluster.run_id)
    assert (status.phase, status.paused, status.leader) == (RunPhase.RUNNING, False, "a")
    assert [(n.node, n.role.value, list(n.ranks)) for n in status.nodes] == [
        ("a", "member", [0]),
        ("b", "member", [1]),
        ("c", "starting", []),
    ]
    text = "\n".join(status.describe())
    assert "running, mode=live, generation 1 (start), 2 nodes, 2 workers, 1 to 4 nodes" in text
    assert "a  member, active, ranks 0-0 (leader)" in text


def test_last_events(cluster):
    """What a worker tells its agent, and what the agents saw, newest last; a node has its last twenty at most."""
    _, b = cluster.training("a", "b")
    worker = b.worker
    for step in range(30):
        event = Evaluated(
            at=4e9 + step, source="b/0", generation=1, epoch=0, step=step, seconds=0.1, metrics={"acc": 0.5}
        )
        worker.say(Happened(event=event.to_json()))
    worker.say(Happened(event={"kind": "of another version"}))
    last = "evaluated at step 29: acc 0.5"
    cluster.wait_for(lambda view: any(text == last for _, text in view.happenings()))
    events = [text for _, text in read_status(cluster.store, cluster.run_id).events]
    assert "evaluated at step 10: acc 0.5" in events
    assert "evaluated at step 9: acc 0.5" not in events
    cluster.wait_for(lambda view: any("generation 1 with 2 workers" in text for _, text in view.happenings()))
    told = read_status(cluster.store, cluster.run_id).describe()
    assert "last events:" in told
    assert told[-1].endswith(last)


def test_runs(cluster, backend):
    """Every run is listed, whatever characters its id has."""
    cluster.training("a")
    with FakeCluster(lambda: MemoryStore(backend), "team/run 7") as other:
        other.node("x")
        other.wait_for(lambda view: view.run is not None)
        found = {summary.run_id: summary for summary in list_runs(cluster.store)}
    assert set(found) == {cluster.run_id, "team/run 7"}
    assert (found[cluster.run_id].generation, found[cluster.run_id].world_size) == (1, 1)
    assert (found["team/run 7"].generation, found["team/run 7"].num_nodes) == (0, 1)


def test_unknown_run(cluster):
    """The error names the runs that are there."""
    cluster.training("a")
    with pytest.raises(SettingsError, match=f"no run 'nope' at this etcd; the runs there are: '{cluster.run_id}'"):
        read_status(cluster.store, "nope")


def test_drain_errors(cluster):
    """An unknown node, and a beginning that fits two: the error names the nodes."""
    cluster.training("host-a", "host-b")
    with pytest.raises(SettingsError, match=r"no such node in run .*; its nodes are: host-a, host-b"):
        request_drain(cluster.store, cluster.run_id, "other")
    with pytest.raises(SettingsError, match="it may be any of host-a, host-b"):
        request_drain(cluster.store, cluster.run_id, "host")
    assert cluster.view.directive is None
