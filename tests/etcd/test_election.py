"""Leaders that die, lose their answers, or lose etcd."""

from __future__ import annotations

import threading

import pytest

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.etcd import client, connect
from dtf_lightning.etcd import lease as lease_module
from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.store import Put

KEY = "/run/leader"


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_is_resolved(backend: MemoryBackend, applied: bool):
    """Whether the attempt was applied or not, the candidate ends up leading under its own lease, once."""
    store = MemoryStore(backend)
    lease = store.lease(5)
    store.lose_answer(applied=applied)
    leadership = Election(store, KEY).try_acquire(b"me", lease.id)
    assert leadership.lease == lease.id
    assert store.get(KEY).version == 1


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_to_a_loser(backend: MemoryBackend, applied: bool):
    winner, loser = MemoryStore(backend), MemoryStore(backend)
    won = Election(winner, KEY).try_acquire(b"winner", winner.lease(5).id)
    loser.lose_answer(applied=applied)
    assert Election(loser, KEY).try_acquire(b"loser", loser.lease(5).id) == won


@pytest.mark.parametrize("applied", [True, False])
def test_resigning_with_a_lost_answer(backend: MemoryBackend, applied: bool):
    store = MemoryStore(backend)
    election = Election(store, KEY)
    leadership = election.try_acquire(b"me", store.lease(5).id)
    store.lose_answer(applied=applied)
    assert election.resign(leadership)
    assert election.leader() is None


def test_etcd_is_away(backend: MemoryBackend):
    store = MemoryStore(backend)
    lease = store.lease(5)
    backend.available = False
    with pytest.raises(StoreUnavailable):
        Election(store, KEY).try_acquire(b"me", lease.id)


@pytest.mark.process
def test_failover_across_a_leader_change(etcd_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch):
    """The leading candidate's lease ends and etcd's own leader is killed: the second one takes over, with a greater
    epoch, and the first one's late write fails at the fence."""
    monkeypatch.setattr(lease_module, "REVOKE_TIMEOUT", 60.0)  # no longer a courtesy, and etcd has no leader at first
    with connect(etcd_cluster.endpoint, quiet=True) as first, connect(etcd_cluster.endpoint, quiet=True) as second:
        lease = first.lease(60)
        old = Election(first, KEY).try_acquire(b"first", lease.id)
        election = Election(second, KEY)
        successor = second.lease(60)
        assert election.try_acquire(b"second", successor.id) == old
        vacant = threading.Event()
        waiter = threading.Thread(target=lambda: election.wait_until_vacant(old.epoch, timeout=60) and vacant.set())
        waiter.start()
        etcd_cluster.leader().kill()
        lease.revoke()
        waiter.join()
        assert vacant.is_set()
        monkeypatch.setattr(client, "ATTEMPT", 60.0)  # whoever lives may be slow
        new = election.try_acquire(b"second", successor.id)
        assert new.value == b"second"
        assert new.epoch > old.epoch
        assert not first.txn([old.fence], [Put("/run/generation", b"stale")]).succeeded
        assert second.txn([new.fence], [Put("/run/generation", b"fresh")]).succeeded
        successor.revoke()
