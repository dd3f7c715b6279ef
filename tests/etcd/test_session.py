"""A client's session with etcd, whatever it is used for; the agents' use of it is tested with them."""

from __future__ import annotations

import queue

import pytest

from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.session import Session, StoreSnapshot, Write, WriteDone, WriteOutcome
from dtf_lightning.etcd.store import Compare, EventKind, Put

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def store(backend):
    with MemoryStore(backend) as store:
        yield store


@pytest.fixture
def heard():
    return queue.SimpleQueue()


@pytest.fixture
def session(store, heard):
    session = Session(store, "/farm/", name="m1", lease_ttl=5.0, push=heard.put, while_away="tasks go on")
    yield session
    session.close()


def next_of(heard: queue.SimpleQueue, kind: type):
    """The next event of this kind."""
    while not isinstance(event := heard.get(timeout=PATIENCE), kind):
        pass
    return event


def wait_for_keys(backend: MemoryBackend, *keys: str) -> None:
    with backend.changed:
        assert backend.changed.wait_for(lambda: all(backend.find(key) for key in keys), PATIENCE)


def test_all_records_live_and_go_together(session, backend, store):
    """Two records under one lease: both come back when the lease is lost, and both go at the end."""
    keys = ("/farm/machines/m1", "/farm/load/m1")
    session.start()
    for key in keys:
        session.keep(key, b"1")
    wait_for_keys(backend, *keys)
    first = {backend.find(key)[0].lease for key in keys}
    assert len(first) == 1
    with backend.changed:
        backend.drop_lease(*first)
    backend.expire()
    wait_for_keys(backend, *keys)
    assert {backend.find(key)[0].lease for key in keys}.isdisjoint(first)
    session.close()
    assert backend.find("/farm/", prefix=True) == ()


def test_only_the_latest_value_of_a_record_is_written(session, backend, store):
    """Values that come faster than etcd takes them are passed over."""
    watch = store.watch("/farm/")
    for value in (b"1", b"2", b"3"):
        session.keep("/farm/load/m1", value)
    session.start()
    session.close()
    events = []
    while not events or events[-1].kind is not EventKind.DELETE:
        events += watch.get(PATIENCE)
    watch.cancel()
    assert [event.kv.value for event in events[:-1]] == [b"3"]


def test_how_the_last_writes_went_is_told(session, heard):
    """One that applies and one that is refused, before `close` returns."""
    applied = Write(label="done", compares=(), puts=(Put("/farm/done", b"1"),))
    refused = Write(label="late", compares=(Compare("/farm/done", "create", "=", 0),), puts=(Put("/farm/late", b"1"),))
    session.start()
    session.close((applied, refused))
    outcomes = []
    while not heard.empty():
        event = heard.get()
        if isinstance(event, WriteDone):
            outcomes.append((event.write.label, event.outcome))
    assert outcomes == [("done", WriteOutcome.APPLIED), ("late", WriteOutcome.REFUSED)]


def test_an_outage_is_one_line(session, backend, heard, caplog):
    """However many writes fail in it, the log says once that etcd is away and what that means, and once that it is back."""
    session.start()
    next_of(heard, StoreSnapshot)
    with caplog.at_level("INFO", "dtf_lightning"):
        backend.available = False
        for _ in range(3):
            session.submit(Write(label="x", compares=(), puts=(Put("/farm/x", b"1"),)))
            next_of(heard, WriteDone)
        backend.available = True
        session.submit(Write(label="x", compares=(), puts=(Put("/farm/x", b"1"),)))
        assert next_of(heard, WriteDone).outcome is WriteOutcome.APPLIED
    lines = [record.getMessage() for record in caplog.records]
    assert len([line for line in lines if line.startswith("m1: etcd does not answer")]) == 1
    assert lines[0].endswith("; tasks go on")
    assert lines[-1] == "m1: etcd answers again"
