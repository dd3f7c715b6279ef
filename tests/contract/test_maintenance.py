"""Sizes, history, alarms and counted or paged ranges: what every `Store` makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import RevisionCompacted, StoreError, StoreFull, StoreUnavailable, WatchCompacted
from dtf_lightning.etcd.maintenance import Alarm, AlarmKind, StoreStatus
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.store import Delete, Get, Put, Store, Txn
from support.store_worlds import EtcdWorld, collect


class TestRanges:
    @pytest.mark.parametrize("page_size", [1, 2, 7, 100])
    def test_pages_of_any_size(self, store: Store, prefix: str, page_size: int):
        """The same keys, whether the last page is full or not."""
        keys = [f"{prefix}{number}" for number in range(7)]
        store.txn([], [Put(key, b"") for key in keys])
        assert [kv.key for kv in store.range(prefix, page_size=page_size).kvs] == keys

    def test_a_count(self, store: Store, prefix: str):
        assert store.count(prefix) == 0
        store.txn([], [Put(f"{prefix}n/{number}", b"") for number in range(120)])
        store.put(prefix + "m", b"")
        assert (store.count(prefix), store.count(prefix + "n/")) == (121, 120)
        store.delete(prefix + "n/", prefix=True)
        assert store.count(prefix) == 1

    def test_at_an_earlier_revision(self, store: Store, prefix: str):
        """Every moment of three keys that are created, changed, deleted and created again."""
        moments = []
        for operation in (
            Put(prefix + "a", b"1"),
            Put(prefix + "b", b"1"),
            Put(prefix + "a", b"2"),
            Delete(prefix + "a"),
            Txn((), (Put(prefix + "a", b"3"), Delete(prefix + "b"))),
            Txn((), (Put(prefix + "c", b"1"),)),
            Delete(prefix, prefix=True),
        ):
            store.txn([], [operation])
            moments.append(store.range(prefix))
        for moment in moments:
            assert store.range(prefix, revision=moment.revision) == moment
        with pytest.raises(StoreError, match="future revision"):
            store.range(prefix, revision=moments[-1].revision + 1_000_000)


class TestCompaction:
    def test_history_is_gone_and_keys_are_not(self, store: Store, prefix: str):
        """Watches and ranges before the revision say so; those from there on work."""
        first = store.put(prefix + "k", b"1")
        store.put(prefix + "k", b"2")
        third = store.put(prefix + "k", b"3")
        store.put(prefix + "j", b"4")
        store.maintenance.compact(third)
        with pytest.raises(RevisionCompacted):
            store.range(prefix, revision=first)
        watch = store.watch(prefix, start_revision=first)
        with pytest.raises(WatchCompacted):
            watch.get(60)
        watch.cancel()
        assert [kv.value for kv in store.range(prefix, revision=third).kvs] == [b"3"]
        assert [kv.value for kv in store.range(prefix).kvs] == [b"4", b"3"]
        watch = store.watch(prefix, start_revision=third)
        assert [event.kv.value for event in collect(watch, 2)] == [b"3", b"4"]
        watch.cancel()

    def test_again_is_no_error(self, store: Store, prefix: str):
        """Several do it at once, and an answer can be lost."""
        revision = store.put(prefix + "k", b"")
        for below in (revision, revision, revision - 1):
            store.maintenance.compact(below, physical=below == revision)

    def test_a_revision_to_come_is_an_error(self, store: Store, prefix: str):
        with pytest.raises(StoreError, match="future revision"):
            store.maintenance.compact(store.put(prefix + "k", b"") + 1_000_000)


def agreed(store: Store) -> StoreStatus | None:
    """What all members say, unless an election is under way."""
    status = store.maintenance.status(timeout=10)
    one_leader = not status.unreachable and len({member.leader for member in status.members}) == 1
    return status if one_leader and status.members[0].leader else None


class TestStatus:
    def test_every_member_tells(self, store: Store, prefix: str):
        """One of them leads, as all say; the revision is the store's, and the file at least as large as its content."""
        revision = store.put(prefix + "k", b"x" * 1000)
        status = poll_until(lambda: agreed(store), 60, "members that agree on their leader")
        assert len({member.endpoint for member in status.members}) == len(status.members)
        assert [member.leads for member in status.members].count(True) == 1
        assert max(member.revision for member in status.members) >= revision
        for member in status.members:
            assert member.db_size >= member.db_size_in_use > 0
            assert member.term > 0
            assert member.version
            assert not member.out_of_space
        assert store.maintenance.alarms() == ()

    def test_defragmenting(self, store: Store, prefix: str):
        """What was written, deleted and compacted is given back; nothing else is lost."""
        store.put(prefix + "kept", b"kept")
        for number in range(40):
            store.put(f"{prefix}{number % 4}", b"x" * 100_000)
        store.txn([], [Delete(f"{prefix}{number}") for number in range(4)])
        revision = store.put(prefix + "last", b"")
        store.maintenance.compact(revision, physical=True)
        store.maintenance.defragment()
        status = store.maintenance.status(timeout=10)
        # Of three members only the one that was asked need have freed its pages by then.
        assert min(member.db_size for member in status.members) < 4_000_000
        assert [kv.value for kv in store.range(prefix).kvs] == [b"kept", b""]

    def test_a_closed_store(self, store: Store):
        store.close()
        for call in (
            store.maintenance.status,
            store.maintenance.alarms,
            store.maintenance.defragment,
            lambda: store.maintenance.compact(1),
        ):
            with pytest.raises(StoreError, match="closed"):
                call()


@pytest.fixture(params=["memory", "etcd"])
def small(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A store with room for some 2 MB."""
    if request.param == "memory":
        with MemoryStore(MemoryBackend(quota=2_000_000)) as store:
            yield store
        return
    with EtcdCluster(1, extra=("--quota-backend-bytes", "2000000")) as cluster:
        client = EtcdWorld(cluster.endpoint).client()
        yield client
        client.close()


def write(store: Store, num_values: int) -> None:
    for _ in range(num_values):
        store.put("/big", b"x" * 100_000)


def fill(store: Store) -> None:
    """etcd looks at its file's size, which grows when it commits, ten times a second: it may take many more at first."""
    with pytest.raises(StoreFull, match="space exceeded"):
        write(store, 2000)


def test_a_full_database(small: Store):
    """Reads and deletes go on, writes and leases fail, also where there is room again, until the alarm is off."""
    small.put("/a", b"1")
    fill(small)
    (alarm,) = small.maintenance.alarms()
    assert alarm.kind is AlarmKind.NO_SPACE
    (member,) = small.maintenance.status(timeout=10).members
    assert member.out_of_space
    assert member.member == alarm.member
    for call in (
        lambda: small.put("/b", b""),
        lambda: small.txn([], [Put("/b", b"")]),
        lambda: small.txn([], [Get("/a")], [Put("/b", b"")]),
        lambda: small.lease(60),
    ):
        with pytest.raises(StoreFull):
            call()
    assert small.get("/a") is not None
    assert small.delete("/big") == 1
    revision = small.range("/").revision

    small.maintenance.compact(revision, physical=True)
    small.maintenance.defragment()
    with pytest.raises(StoreFull):
        small.put("/b", b"")
    small.maintenance.disarm(alarm)
    small.maintenance.disarm(alarm)
    assert small.maintenance.alarms() == ()
    assert small.maintenance.status(timeout=10).members[0].db_size < member.db_size
    small.put("/b", b"")
    small.lease(60).revoke()


def test_the_quota_overlooks_transactions_inside(small: Store):
    """A trap of etcd's: where there is room, an alarm that stops every other write does not stop these."""
    fill(small)
    (alarm,) = small.maintenance.alarms()
    small.delete("/big")
    small.maintenance.compact(small.range("/").revision, physical=True)
    small.maintenance.defragment()
    with pytest.raises(StoreFull):
        small.txn([], [Put("/a", b"")])
    assert small.txn([], [Txn((), (Put("/a", b""),))]).succeeded
    assert small.get("/a") is not None
    assert small.maintenance.alarms() == (alarm,)


def test_an_alarm_that_was_only_silenced(small: Store):
    """Without room it is raised again by the next write."""
    fill(small)
    (alarm,) = small.maintenance.alarms()
    small.maintenance.disarm(alarm)
    fill(small)
    assert small.maintenance.alarms() == (alarm,)
    small.maintenance.disarm(Alarm(AlarmKind.CORRUPT, alarm.member))
    assert small.maintenance.alarms() == (alarm,)


class TestMembersAway:
    def test_a_dead_member(self, etcd_cluster: EtcdCluster):
        """Status names it and tells of the others; defragmenting does the others and then says which it was."""
        dead = etcd_cluster.members[0]
        client = EtcdWorld(etcd_cluster.endpoint).client()
        dead.kill()
        status = client.maintenance.status(timeout=10)
        assert len(status.members) == 2
        assert [endpoint for endpoint, _ in status.unreachable] == [dead.endpoint]
        with pytest.raises(StoreUnavailable, match=f"1 of 3 members were not done.*{dead.endpoint}"):
            client.maintenance.defragment()
        for member in etcd_cluster.members[1:]:
            member.kill()
        with pytest.raises(StoreUnavailable, match="no member of etcd answered"):
            client.maintenance.status(timeout=0.5)
        client.close()

    def test_the_twin_in_an_outage(self):
        store = MemoryStore()
        store.reachable = False
        for call in (store.maintenance.status, store.maintenance.alarms, lambda: store.maintenance.compact(1)):
            with pytest.raises(StoreUnavailable):
                call()
