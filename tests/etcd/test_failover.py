"""Members of a cluster die, freeze, lose their quorum and come back, under a writer and a watch.

What is compared at the end: every write that etcd has, told by the watch exactly once and in order.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import OutcomeUnknown, StoreError, StoreUnavailable
from dtf_lightning.etcd import client, connect
from dtf_lightning.etcd import watch as watch_module
from dtf_lightning.etcd.etcd_store import EtcdStore
from dtf_lightning.etcd.server.cluster import EtcdCluster, Member, status
from dtf_lightning.etcd.store import Compare, Get, Put, WatchEvent
from support.etcd_cluster import etcdctl

PREFIX = "/failover/"
PATIENCE = 60.0
"""Seconds; only a test that fails waits this long."""


class Traffic:
    """Writes numbered keys in one thread, collects what the watch tells in another."""

    def __init__(self, store: EtcdStore) -> None:
        self.store = store
        self.watch = store.watch(PREFIX)
        self.events: list[WatchEvent] = []
        self.num_written = 0
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write, name="writer")
        self._reader = threading.Thread(target=self._read, name="reader")
        self._writer.start()
        self._reader.start()

    def _write(self) -> None:
        while not self._stop.wait(0.002):
            try:
                self.store.put(f"{PREFIX}{self.num_written:06d}", b"", timeout=2.0)
            except StoreUnavailable:
                continue
            with self._changed:
                self.num_written += 1
                self._changed.notify_all()

    def _read(self) -> None:
        while (batch := self.watch.get()) is not None:
            with self._changed:
                self.events += batch
                self._changed.notify_all()

    def flows(self, num_more: int = 20) -> None:
        """Wait until so many more writes were acknowledged."""
        with self._changed:
            goal = self.num_written + num_more
            assert self._changed.wait_for(lambda: self.num_written >= goal, PATIENCE), "writes do not go on"

    def check(self) -> None:
        """Stop writing; the watch must have told all of it. A write whose answer was lost may have been made twice."""
        self._stop.set()
        self._writer.join()
        versions = {kv.key: kv.version for kv in self.store.range(PREFIX, timeout=PATIENCE).kvs}
        assert len(versions) >= self.num_written
        with self._changed:
            all_told = self._changed.wait_for(lambda: len(self.events) >= sum(versions.values()), PATIENCE)
            assert all_told, f"{len(self.events)} of {sum(versions.values())} events came"
        revisions = [event.kv.mod_revision for event in self.events]
        assert revisions == sorted(set(revisions))
        assert Counter(event.kv.key for event in self.events) == versions

    def close(self) -> None:
        self._stop.set()
        self._writer.join()
        self.watch.cancel()
        self._reader.join()


def follower(cluster: EtcdCluster) -> Member:
    leader = cluster.leader()
    return next(member for member in cluster.members if member is not leader)


def kill_leader(cluster: EtcdCluster, connected: Member) -> None:
    if cluster.leader() is connected:  # an election has made it the leader meanwhile: it hands over
        other = next(member for member in cluster.members if member is not connected)
        etcdctl(connected.endpoint, "move-leader", f"{status(other.endpoint).header.member_id:x}")
    cluster.leader().kill()


def kill_connected(cluster: EtcdCluster, connected: Member) -> None:
    connected.kill()


def freeze_connected(cluster: EtcdCluster, connected: Member) -> None:
    connected.freeze()


@pytest.fixture
def store_and_member(etcd_cluster: EtcdCluster) -> Iterator[tuple[EtcdStore, Member]]:
    """A client connected to a follower."""
    connected = follower(etcd_cluster)
    with connect(etcd_cluster.endpoint_from(connected), quiet=True) as store:
        yield store, connected


@pytest.mark.process
@pytest.mark.parametrize("harm", [kill_leader, kill_connected, freeze_connected], ids=lambda harm: harm.__name__)
def test_one_member_of_three(
    etcd_cluster: EtcdCluster,
    store_and_member: tuple[EtcdStore, Member],
    harm: Callable[[EtcdCluster, Member], None],
):
    """Writes go on, no event is lost or told twice, and the lease lives."""
    store, connected = store_and_member
    lost = threading.Event()
    lease = store.lease(10, on_lost=lost.set)
    store.put("/lease", b"", lease=lease.id)
    traffic = Traffic(store)
    try:
        traffic.flows()
        harm(etcd_cluster, connected)
        traffic.flows(200)
        traffic.check()
    finally:
        traffic.close()
    assert not lost.is_set()
    assert store.get("/lease") is not None
    lease.revoke()


@pytest.mark.process
def test_a_member_thaws(etcd_cluster: EtcdCluster, store_and_member: tuple[EtcdStore, Member]):
    """Frozen until the client has gone on to another member, then back."""
    store, connected = store_and_member
    traffic = Traffic(store)
    try:
        traffic.flows()
        connected.freeze()
        traffic.flows(100)
        connected.thaw()
        traffic.flows(100)
        traffic.check()
    finally:
        traffic.close()


@pytest.mark.process
def test_a_quiet_watch_on_a_frozen_member(
    etcd_cluster: EtcdCluster, store_and_member: tuple[EtcdStore, Member], monkeypatch: pytest.MonkeyPatch
):
    """No call of its client notices: the watch itself asks after some silence, and moves on."""
    monkeypatch.setattr(watch_module, "SILENCE", 0.5)
    store, connected = store_and_member
    watch = store.watch(PREFIX)
    connected.freeze()
    with connect(
        ",".join(member.endpoint for member in etcd_cluster.members if member is not connected), quiet=True
    ) as other:
        other.put(PREFIX, b"while it is frozen")
    (event,) = watch.get(PATIENCE)
    assert event.kv.value == b"while it is frozen"
    watch.cancel()


@pytest.mark.process
def test_one_after_the_other(etcd_cluster: EtcdCluster):
    """Each member is killed and comes back, under traffic."""
    with connect(etcd_cluster.endpoint, quiet=True) as store:
        traffic = Traffic(store)
        try:
            for member in etcd_cluster.members:
                traffic.flows()
                member.kill()
                traffic.flows()
                member.start()
            traffic.flows()
            traffic.check()
        finally:
            traffic.close()


@pytest.mark.process
def test_quorum_lost_and_back(etcd_cluster: EtcdCluster, store_and_member: tuple[EtcdStore, Member]):
    """Two members die: reads and writes say that etcd is away, the watch stays silent; two members return, all goes on."""
    store, connected = store_and_member
    traffic = Traffic(store)
    try:
        traffic.flows()
        away = [member for member in etcd_cluster.members if member is not connected]
        for member in away:
            member.kill()
        with pytest.raises(StoreUnavailable, match="no answer from etcd"):
            store.get("/x", timeout=1.5)
        with pytest.raises((OutcomeUnknown, StoreUnavailable)):
            store.txn([Compare("/x", "create", "=", 0)], [Put("/x", b"")], timeout=1.5)
        with pytest.raises(StoreUnavailable):
            store.txn([], [Get("/x")], timeout=1.5)
        for member in away:
            member.launch()
        for member in away:
            member.wait_until_ready()
        traffic.flows()
        traffic.check()
    finally:
        traffic.close()


@pytest.mark.process
def test_all_gone_and_back(etcd_cluster: EtcdCluster):
    """The whole cluster is restarted. A lease that could not be renewed meanwhile is reported lost, once."""
    num_lost = []
    lost = threading.Event()

    def on_lost() -> None:
        num_lost.append(1)
        lost.set()

    with connect(etcd_cluster.endpoint, quiet=True) as store:
        lease = store.lease(1, on_lost=on_lost)
        traffic = Traffic(store)
        try:
            traffic.flows()
            for member in etcd_cluster.members:
                member.kill()
            assert lost.wait(PATIENCE)
            assert lease.lost
            lease.revoke()
            for member in etcd_cluster.members:
                member.launch()
            for member in etcd_cluster.members:
                member.wait_until_ready()
            traffic.flows()
            traffic.check()
        finally:
            traffic.close()
    assert num_lost == [1]


@pytest.mark.process
def test_a_write_with_a_lost_answer(steady_cluster: EtcdCluster):
    """The only member a client knows is frozen while it writes: `OutcomeUnknown`, and reading tells."""
    member = follower(steady_cluster)
    with connect(member.endpoint, quiet=True) as store:
        store.put("/x", b"before")
        member.freeze()
        with pytest.raises(OutcomeUnknown, match=r"'/x'.*may or may not have been applied"):
            store.txn([], [Put("/x", b"after")], timeout=0.3)
        member.thaw()
        assert store.get("/x", timeout=PATIENCE).value in (b"before", b"after")


@pytest.mark.process
def test_a_write_that_was_never_sent_is_tried_again(steady_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch):
    """The current endpoint is dead already: a transaction moves on to the next, without a doubt about its outcome."""
    monkeypatch.setattr(client, "ATTEMPT", PATIENCE)  # whoever lives may be slow
    dead = follower(steady_cluster)
    dead.kill()
    with connect(steady_cluster.endpoint_from(dead), quiet=True) as store:
        store._client.make_current(0)
        assert store.txn([Compare("/x", "create", "=", 0)], [Put("/x", b"")]).succeeded
        assert store._client.current == 1


@pytest.mark.process
def test_a_frozen_member_is_left_by_writes_alone(steady_cluster: EtcdCluster, monkeypatch: pytest.MonkeyPatch):
    """A client that only makes transactions, as a farm's lane: after one lost answer the next goes to another member."""
    connected = follower(steady_cluster)
    with connect(steady_cluster.endpoint_from(connected), quiet=True) as store:
        store._client.make_current(0)
        connected.freeze()
        with pytest.raises(OutcomeUnknown):
            store.txn([], [Put("/x", b"2")])
        monkeypatch.setattr(client, "ATTEMPT", PATIENCE)  # whoever lives may be slow
        assert store.txn([], [Put("/x", b"3")]).succeeded


@pytest.mark.process
def test_a_member_with_other_data_does_not_serve():
    """A value is changed in the file of a member that is down: on its start it finds that the others have another one.

    It knows of the others from its latest snapshot: etcd's own default is one in 100,000 writes.
    """
    with EtcdCluster(extra=("--snapshot-count", "5")) as cluster:
        member = cluster.members[2]
        with connect(cluster.endpoint, quiet=True) as store:
            store.put("/corrupted", b"as it was written")
            for number in range(20):
                store.put(f"/more/{number}", b"")
        snapshots = member.directory / f"{member.name}.data/member/snap"
        poll_until(lambda: any(snapshots.glob("*.snap")), PATIENCE, "the member's snapshot")
        poll_until(
            lambda: b"/more/19" in (snapshots / "db").read_bytes(), PATIENCE, "the last value in the member's file"
        )
        member.kill()
        whole = (snapshots / "db").read_bytes()
        (snapshots / "db").write_bytes(whole.replace(b"as it was written", b"as it was changed"))
        with pytest.raises(StoreError, match="inconsistency with peers"):
            member.start()
        (snapshots / "db").write_bytes(whole)
        member.start()
