"""The in-memory store's faults; what it shares with etcd is in the contract suite."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import OutcomeUnknown, StoreUnavailable
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.store import Put
from support.store_worlds import ManualClock, collect


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def backend(clock: ManualClock) -> MemoryBackend:
    return MemoryBackend(clock)


def test_an_outage(backend: MemoryBackend):
    """Calls raise, watches stand still; afterwards nothing was lost, and leases had their clocks started anew."""
    one, two = MemoryStore(backend), MemoryStore(backend)
    watch = one.watch("/")
    two.put("/a", b"1")
    backend.available = False
    for call in (lambda: one.get("/a"), lambda: two.put("/a", b"2"), lambda: one.lease(5), lambda: one.watch("/")):
        with pytest.raises(StoreUnavailable):
            call()
    assert watch.get(0) == ()
    backend.available = True
    two.put("/a", b"3")
    assert [event.kv.value for event in collect(watch, 2)] == [b"1", b"3"]


def test_a_lease_in_an_outage(backend: MemoryBackend, clock: ManualClock):
    """Its owner counts it as lost after its TTL; etcd, back again, holds the key for another TTL."""
    store = MemoryStore(backend)
    told = []
    lease = store.lease(5, on_lost=lambda: told.append(clock.now))
    store.put("/a", b"", lease=lease.id)
    backend.available = False
    clock.now += 4.9
    backend.expire()
    assert not lease.lost
    clock.now += 0.2
    backend.expire()
    backend.expire()
    assert lease.lost
    assert told == [clock.now]
    backend.available = True
    backend.expire()
    assert store.get("/a") is not None
    clock.now += 5.0
    backend.expire()
    assert store.get("/a") is None


def test_one_client_is_cut_off(backend: MemoryBackend, clock: ManualClock):
    """Its lease expires for all others, who go on; back again, it finds out."""
    cut, other = MemoryStore(backend), MemoryStore(backend)
    lease = cut.lease(5)
    cut.put("/cut", b"", lease=lease.id)
    kept = other.lease(5)
    other.put("/kept", b"", lease=kept.id)
    watch = other.watch("/")
    cut.reachable = False
    with pytest.raises(StoreUnavailable):
        cut.get("/cut")
    clock.now += 5.0
    backend.expire()
    assert [event.kv.key for event in collect(watch, 1)] == ["/cut"]
    assert lease.lost
    assert not kept.lost
    cut.reachable = True
    assert cut.get("/cut") is None
    assert cut.get("/kept") is not None


def test_a_client_vanishes(backend: MemoryBackend, clock: ManualClock):
    """As a killed process: its keys stay until its lease expires."""
    dying, other = MemoryStore(backend), MemoryStore(backend)
    dying.put("/dying", b"", lease=dying.lease(5).id)
    dying.vanish()
    backend.expire()
    assert other.get("/dying") is not None
    clock.now += 5.0
    backend.expire()
    assert other.get("/dying") is None


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer(backend: MemoryBackend, applied: bool):
    store = MemoryStore(backend)
    store.lose_answer(applied=applied)
    with pytest.raises(OutcomeUnknown):
        store.txn([], [Put("/a", b"")])
    assert (store.get("/a") is not None) is applied
    assert store.txn([], [Put("/a", b"")]).succeeded


def test_on_lost_may_use_the_store(backend: MemoryBackend, clock: ManualClock):
    """An agent grants itself a new lease right there."""
    store = MemoryStore(backend)
    leases = []

    def again() -> None:
        leases.append(store.lease(5))
        store.put("/a", b"again", lease=leases[-1].id)

    lease = store.lease(5, on_lost=again)
    store.put("/a", b"", lease=lease.id)
    with backend.changed:
        backend.drop_lease(lease.id)
    backend.expire()
    assert store.get("/a").lease == leases[0].id != lease.id
