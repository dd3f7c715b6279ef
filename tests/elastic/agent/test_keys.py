"""A copy of a run's keys: snapshots, events, and values that another version wrote."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import (
    Fingerprint,
    NodeDeleted,
    RunInfo,
    RunKeys,
    RunPhase,
    RunView,
    encode,
    run_id_of,
)
from dtf_lightning.etcd.memory.store import MemoryStore

RECORD = NodeRecord(node="a", host="h", num_workers=1)


@pytest.fixture
def store():
    with MemoryStore() as store:
        yield store


@pytest.fixture
def view():
    return RunView(RunKeys("r"))


@pytest.mark.parametrize("run_id", ["r", "team/run 7", "ünï", "a%2Fb"])
def test_any_run_id(run_id):
    """Whatever a run id holds, its keys lie under one prefix and name it."""
    keys = RunKeys(run_id)
    assert keys.prefix.count("/") == 4
    assert run_id_of(keys.node("a")) == run_id


def test_snapshot_after_missed_events(store, view):
    """A node that went while nobody watched shows as deleted in the next snapshot, with its last record."""
    store.put(view.keys.node("a"), encode(RECORD.to_json()))
    (found,) = view.reset(store.range(view.keys.prefix))
    assert (found.node, found.order) == ("a", 2)
    store.delete(view.keys.node("a"))
    (gone,) = view.reset(store.range(view.keys.prefix))
    assert gone == NodeDeleted(found)
    assert view.nodes == {}


def test_value_is_read_anew_when_it_changes(store, view):
    """Parsed values are kept per version only."""
    for phase in (RunPhase.RUNNING, RunPhase.FINISHED):
        store.put(view.keys.run, RunInfo(instance="i", phase=phase).encode())
        view.reset(store.range(view.keys.prefix))
        assert view.run.phase is phase
    store.delete(view.keys.run)
    view.reset(store.range(view.keys.prefix))
    assert view.run is None


def test_record_of_another_version(store, view, caplog):
    """A node's record that cannot be read is left out and said so; the others count."""
    store.put(view.keys.node("a"), encode(RECORD.to_json()))
    store.put(view.keys.node("b"), encode({"node": "b", "colour": "blue"}))
    view.reset(store.range(view.keys.prefix))
    assert set(view.nodes) == {"a"}
    assert "do all nodes run the same dtf-lightning?" in caplog.text


@pytest.mark.parametrize(
    ("ours", "difference"),
    [
        (Fingerprint(settings={"lr": "1"}, parameters=("w", "b")), None),
        (
            Fingerprint(settings={"lr": "2"}, parameters=("w", "b")),
            "setting 'lr' is '1' in the run and '2' on this node",
        ),
        (Fingerprint(settings={}, parameters=("w", "b")), "setting 'lr' is '1' in the run and 'nothing' on this node"),
        (
            Fingerprint(settings={"lr": "1"}, parameters=("w", "c")),
            "parameter 1 is 'b' in the run and 'c' on this node",
        ),
        (
            Fingerprint(settings={"lr": "1"}, parameters=("w",)),
            "2 parameters and buffers in the run and 1 on this node",
        ),
    ],
)
def test_first_difference(ours, difference):
    """The first thing that differs is named, with both values."""
    found = Fingerprint.decode(Fingerprint(settings={"lr": "1"}, parameters=("w", "b")).encode()).first_difference(ours)
    assert found is None if difference is None else difference in found
