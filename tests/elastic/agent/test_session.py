"""An agent's session with etcd: records, leases, writes and the goodbye."""

from __future__ import annotations

import queue

import pytest

from dtf_lightning.elastic.agent.etcd_session import NodeSession
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import RunKeys, encode
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.session import OWN_LEASE, StoreSnapshot, Write, WriteDone, WriteOutcome
from dtf_lightning.etcd.store import Compare, EventKind, Put

KEYS = RunKeys("r")


@pytest.fixture
def store(backend):
    with MemoryStore(backend) as store:
        yield store


@pytest.fixture
def heard():
    return queue.SimpleQueue()


@pytest.fixture
def session(store, heard):
    session = NodeSession(store, KEYS, node="a", lease_ttl=5.0, push=heard.put)
    yield session
    session.close()


def record(state: WorkerState = WorkerState.JOINING) -> NodeRecord:
    return NodeRecord(node="a", host="h", num_workers=1, state=state)


def next_of(heard: queue.SimpleQueue, kind: type):
    """The next event of this kind."""
    while True:
        event = heard.get(timeout=60)
        if isinstance(event, kind):
            return event


def test_goodbye(session, backend, heard, store):
    """The last record is written before the key goes, so that the others can read why; the lease is given back."""
    watch = store.watch(KEYS.prefix)
    session.write_record(record())
    session.write_record(record(WorkerState.FAILED))
    session.start()
    session.close()
    events = []
    while not events or events[-1].kind is not EventKind.DELETE:
        events += watch.get(60)
    watch.cancel()
    assert b'"failed"' in events[-2].kv.value
    assert backend.find(KEYS.prefix, prefix=True) == ()
    assert backend._leases == {}


def test_outcomes(session, heard):
    """A write whose compare holds, and one whose does not; the own lease is filled in."""
    session.start()
    session.write_record(record())
    claim = Put(KEYS.leader, encode({"node": "a"}), lease=OWN_LEASE)
    write = Write(label="campaign", compares=(Compare(KEYS.leader, "create", "=", 0),), puts=(claim,))
    session.submit(write)
    assert next_of(heard, WriteDone) == WriteDone(write, WriteOutcome.APPLIED)
    session.submit(write)
    assert next_of(heard, WriteDone) == WriteDone(write, WriteOutcome.REFUSED)


def test_write_while_etcd_is_away(session, heard, backend):
    """A transaction is tried once: the outcome is unknown, and whoever wants it asks again."""
    session.start()
    next_of(heard, StoreSnapshot)
    backend.available = False
    write = Write(label="x", compares=(), puts=(Put(KEYS.status, b"{}"),))
    session.submit(write)
    assert next_of(heard, WriteDone) == WriteDone(write, WriteOutcome.UNKNOWN)


def test_record_outlives_its_lease(session, backend, store):
    """The lease is lost: the record is written again under a new one."""
    watch = store.watch(KEYS.node("a"))
    session.start()
    session.write_record(record())
    first = watch.get(60)[0].kv
    with backend.changed:
        backend.drop_lease(first.lease)
    backend.expire()
    events = list(watch.get(60))
    while events[-1].kind is not EventKind.PUT:
        events += watch.get(60)
    watch.cancel()
    assert events[-1].kv.lease not in (0, first.lease)
    assert events[-1].kv.value == first.value
