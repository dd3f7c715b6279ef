"""What every `Store` does: the in-memory one, one etcd, and three of them."""

from __future__ import annotations

import operator
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dtf_lightning.errors import LeaseLost, StoreError, WatchCompacted
from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.store import Compare, Delete, EventKind, Get, KeyValue, Put, Store
from support.store_worlds import World, collect, gone

ABSENT = "absent"
TTL = 3
"""Seconds of leases that are to end: a machine that stands still for less loses none before."""
ONE_ETCD = pytest.mark.parametrize("world", ["memory", "etcd"], indirect=True)
"""Where time has to pass: three members have the same leases."""
OPERATORS = {"=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt}


class TestKeys:
    def test_what_was_put_is_there(self, store: Store, prefix: str):
        """A key's life: created, changed, deleted, created again."""
        created = store.put(prefix + "k", b"1")
        assert store.get(prefix + "k") == KeyValue(prefix + "k", b"1", created, created, 1)
        changed = store.put(prefix + "k", b"2")
        assert changed > created
        assert store.get(prefix + "k") == KeyValue(prefix + "k", b"2", created, changed, 2)
        assert store.delete(prefix + "k") == 1
        assert store.get(prefix + "k") is None
        again = store.put(prefix + "k", b"3")
        assert store.get(prefix + "k") == KeyValue(prefix + "k", b"3", again, again, 1)

    def test_keys_and_values_are_bytes_proof(self, store: Store, prefix: str):
        """Non-ASCII keys; empty, binary and large values."""
        for key, value in {"käse/€": b"", "b": bytes(range(256)), "c": b"x" * 300_000}.items():
            store.put(prefix + key, value)
            kv = store.get(prefix + key)
            assert kv is not None
            assert (kv.key, kv.value) == (prefix + key, value)

    def test_a_range_is_in_key_order_and_keeps_to_its_prefix(self, store: Store, prefix: str):
        for key in ("n/b", "n/a", "n/ä", "n0", "m/z", "n/a/deeper", "n"):
            store.put(prefix + key, key.encode())
        result = store.range(prefix + "n/")
        assert [kv.key.removeprefix(prefix) for kv in result.kvs] == ["n/a", "n/a/deeper", "n/b", "n/ä"]

    def test_an_empty_range_has_the_current_revision(self, store: Store, prefix: str):
        revision = store.put(prefix + "x", b"")
        result = store.range(prefix + "nothing/")
        assert result.kvs == ()
        assert result.revision >= revision

    def test_a_range_of_many_pages(self, store: Store, prefix: str):
        """1,600 keys, written 100 per transaction."""
        keys = [f"{prefix}{number:05d}" for number in range(1600)]
        for start in range(0, len(keys), 100):
            revision = store.txn([], [Put(key, b"v") for key in keys[start : start + 100]]).revision
        result = store.range(prefix)
        assert [kv.key for kv in result.kvs] == keys
        assert result.revision >= revision

    def test_delete_counts(self, store: Store, prefix: str):
        for key in ("a/1", "a/2", "b"):
            store.put(prefix + key, b"")
        assert store.delete(prefix + "a/", prefix=True) == 2
        assert store.delete(prefix + "b") == 1
        assert store.delete(prefix + "b") == 0
        assert store.range(prefix).kvs == ()

    def test_an_empty_key_is_an_error(self, store: Store):
        with pytest.raises(StoreError, match="key is not provided"):
            store.put("", b"")
        with pytest.raises(StoreError, match="key is not provided"):
            store.get("")


class TestTransactions:
    @pytest.mark.parametrize("target", ["create", "mod", "version", "lease"])
    def test_number_compares(self, store: Store, prefix: str, target: str):
        """Every operator against the actual number and its neighbours, of a key that was created and then changed."""
        lease = store.lease(60)
        store.put(prefix + "k", b"1", lease=lease.id)
        store.put(prefix + "k", b"2", lease=lease.id)
        kv = store.get(prefix + "k")
        assert kv is not None
        actual = {"create": kv.create_revision, "mod": kv.mod_revision, "version": kv.version, "lease": kv.lease}[
            target
        ]
        for op, holds in OPERATORS.items():
            for operand in (actual - 1, actual, actual + 1):
                result = store.txn([Compare(prefix + "k", target, op, operand)], [])
                assert result.succeeded is holds(actual, operand), (op, operand - actual)
        lease.revoke()

    def test_value_compares(self, store: Store, prefix: str):
        """Values compare as bytes."""
        store.put(prefix + "k", b"m")
        for op, holds in OPERATORS.items():
            for operand in (b"", b"l\xff", b"m", b"mm", b"n"):
                result = store.txn([Compare(prefix + "k", "value", op, operand)], [])
                assert result.succeeded is holds(b"m", operand), (op, operand)

    def test_compares_of_a_missing_key(self, store: Store, prefix: str):
        """All its numbers are 0; no compare of its value holds, "!=" neither."""
        for op, holds in OPERATORS.items():
            for target in ("create", "mod", "version", "lease"):
                for operand in (-1, 0, 1):
                    result = store.txn([Compare(prefix + ABSENT, target, op, operand)], [])
                    assert result.succeeded is holds(0, operand), (target, op, operand)
            for operand in (b"", b"x"):
                assert not store.txn([Compare(prefix + ABSENT, "value", op, operand)], []).succeeded, (op, operand)

    def test_all_compares_must_hold(self, store: Store, prefix: str):
        store.put(prefix + "k", b"1")
        true, false = Compare(prefix + "k", "version", "=", 1), Compare(prefix + ABSENT, "version", "=", 1)
        assert store.txn([true, true], []).succeeded
        assert not store.txn([true, false], []).succeeded
        assert store.txn([], []).succeeded

    def test_the_branch_that_runs(self, store: Store, prefix: str):
        """Gets answer in order, one tuple each; the other branch leaves no trace."""
        store.put(prefix + "a/1", b"1")
        store.put(prefix + "a/2", b"2")
        then = [Get(prefix + "a/", prefix=True), Put(prefix + "new", b"n"), Get(prefix + ABSENT), Get(prefix + "a/2")]
        result = store.txn([Compare(prefix + "a/1", "value", "=", b"1")], then, [Put(prefix + "other", b"")])
        assert result.succeeded
        assert [[kv.value for kv in kvs] for kvs in result.gets] == [[b"1", b"2"], [], [b"2"]]
        assert store.get(prefix + "other") is None
        result = store.txn([Compare(prefix + "a/1", "value", "=", b"2")], then, [Get(prefix + "new")])
        assert not result.succeeded
        assert [[kv.value for kv in kvs] for kvs in result.gets] == [[b"n"]]

    def test_one_revision_for_all_writes(self, store: Store, prefix: str):
        """Puts and deletes of a transaction share a revision, and a get after a put sees it."""
        before = store.put(prefix + "old", b"")
        result = store.txn(
            [], [Put(prefix + "a", b"1"), Delete(prefix + "old"), Put(prefix + "b", b"2"), Get(prefix + "a")]
        )
        assert result.revision == before + 1
        assert {kv.mod_revision for kv in store.range(prefix).kvs} == {result.revision}
        assert result.gets[0][0].value == b"1"

    def test_a_transaction_without_writes_has_the_current_revision(self, store: Store, prefix: str):
        revision = store.put(prefix + "k", b"")
        assert store.txn([], [Get(prefix + "k")]).revision == revision
        assert store.txn([], [Delete(prefix + ABSENT)]).revision == revision

    @pytest.mark.parametrize(
        "operations",
        [
            [Put("{}k", b"1"), Put("{}k", b"2")],
            [Put("{}k", b"1"), Delete("{}k")],
            [Delete("{}", prefix=True), Put("{}k", b"1")],
        ],
        ids=["put put", "put delete", "delete-prefix put"],
    )
    def test_writing_a_key_twice_is_an_error(self, store: Store, prefix: str, operations):
        """In either branch, whichever would run."""
        operations = [
            type(o)(o.key.format(prefix), *((o.value,) if isinstance(o, Put) else (o.prefix,))) for o in operations
        ]
        for branches in ((operations, []), ([], operations)):
            with pytest.raises(StoreError, match="duplicate key"):
                store.txn([], *branches)
        assert store.range(prefix).kvs == ()

    def test_too_many_operations_is_an_error(self, store: Store, prefix: str):
        with pytest.raises(StoreError, match="too many operations"):
            store.txn([], [Put(f"{prefix}{number}", b"") for number in range(129)])

    def test_compare_and_swap_from_many_threads(self, store: Store, other: Store, prefix: str):
        """Eight threads of two clients each add 1 five times; none is lost."""
        store.put(prefix + "n", b"0")

        def add_one(client: Store) -> None:
            while True:
                kv = client.get(prefix + "n")
                assert kv is not None
                same = Compare(kv.key, "mod", "=", kv.mod_revision)
                if client.txn([same], [Put(kv.key, b"%d" % (int(kv.value) + 1))]).succeeded:
                    return

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(add_one, [store, other] * 20))
        kv = store.get(prefix + "n")
        assert kv is not None
        assert (kv.value, kv.version) == (b"40", 41)


class TestWatches:
    def test_from_now_on(self, store: Store, other: Store, prefix: str):
        """What was there before is not told; puts and deletes under the prefix are, in order, and nothing else."""
        store.put(prefix + "n/a", b"before")
        watch = store.watch(prefix + "n/")
        put = other.put(prefix + "n/a", b"1")
        other.put(prefix + "n0", b"outside")
        deleted = other.put(prefix + "n/b", b"2") + 1
        other.delete(prefix + "n/b")
        events = collect(watch, 3)
        assert [(e.kind, e.kv.key.removeprefix(prefix), e.kv.value) for e in events] == [
            (EventKind.PUT, "n/a", b"1"),
            (EventKind.PUT, "n/b", b"2"),
            (EventKind.DELETE, "n/b", b""),
        ]
        assert [e.kv.mod_revision for e in events] == [put, deleted - 1, deleted]
        assert (events[0].kv.version, events[0].kv.create_revision) == (2, put - 1)
        watch.cancel()

    def test_from_an_old_revision(self, store: Store, prefix: str):
        """History first, then what comes; without a gap or a repetition in between."""
        revisions = [store.put(prefix + "k", b"%d" % number) for number in range(20)]
        watch = store.watch(prefix, start_revision=revisions[5])
        revisions += [store.put(prefix + "k", b"%d" % number) for number in range(20, 30)]
        assert [e.kv.mod_revision for e in collect(watch, 25)] == revisions[5:]
        watch.cancel()

    def test_from_a_revision_to_come(self, store: Store, prefix: str):
        now = store.put(prefix + "k", b"now")
        watch = store.watch(prefix, start_revision=now + 3)
        for value in (b"1", b"2", b"3"):
            store.put(prefix + "k", value)
        assert [e.kv.value for e in collect(watch, 1)] == [b"3"]
        watch.cancel()

    def test_snapshot_and_watch_leave_no_gap(self, store: Store, other: Store, prefix: str):
        """Read at a revision, watch from the next: with a writer in full swing, each value is seen exactly once."""
        stop = threading.Event()

        def write() -> None:
            number = 0
            while not stop.is_set():
                other.put(f"{prefix}{number:06d}", b"")
                number += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            snapshot = store.range(prefix)
            watch = store.watch(prefix, start_revision=snapshot.revision + 1)
            seen = [kv.key for kv in snapshot.kvs] + [e.kv.key for e in collect(watch, 30)]
        finally:
            stop.set()
            writer.join()
        assert seen == [f"{prefix}{number:06d}" for number in range(len(seen))]
        watch.cancel()

    def test_a_batch_holds_whole_revisions(self, store: Store, prefix: str):
        watch = store.watch(prefix)
        store.txn([], [Put(f"{prefix}{number}", b"") for number in range(50)])
        batch = watch.get(60)
        assert batch is not None
        assert len(batch) == 50
        watch.cancel()

    def test_a_batch_is_in_the_order_of_the_transaction(self, store: Store, prefix: str):
        store.put(prefix + "z", b"")
        watch = store.watch(prefix)
        store.txn([], [Put(prefix + "b", b""), Delete(prefix + "z"), Put(prefix + "a", b"")])
        assert [e.kv.key.removeprefix(prefix) for e in collect(watch, 3)] == ["b", "z", "a"]
        watch.cancel()

    def test_patience(self, store: Store, prefix: str):
        watch = store.watch(prefix)
        assert watch.get(0) == ()
        assert watch.get(0.01) == ()
        watch.cancel()

    def test_cancelling_wakes(self, store: Store, prefix: str):
        watch = store.watch(prefix)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(watch.get, 120)
            watch.cancel()
            assert waiting.result(60) is None
        watch.cancel()
        assert watch.get(0) is None

    def test_compacted_history(self, world: World, store: Store, prefix: str):
        """A watch that starts before the oldest event left says so; one that starts there works."""
        first = store.put(prefix + "k", b"1")
        store.put(prefix + "k", b"2")
        third = store.put(prefix + "k", b"3")
        world.compact(third)
        watch = store.watch(prefix, start_revision=first)
        with pytest.raises(WatchCompacted) as caught:
            watch.get(60)
        assert caught.value.compact_revision == third
        with pytest.raises(WatchCompacted):
            watch.get(60)
        watch.cancel()
        watch = store.watch(prefix, start_revision=third)
        assert [e.kv.value for e in collect(watch, 1)] == [b"3"]
        watch.cancel()

    def test_two_watches_are_independent(self, store: Store, prefix: str):
        one, two = store.watch(prefix), store.watch(prefix + "b")
        store.put(prefix + "a", b"")
        store.put(prefix + "b", b"")
        assert [e.kv.key.removeprefix(prefix) for e in collect(two, 1)] == ["b"]
        two.cancel()
        assert [e.kv.key.removeprefix(prefix) for e in collect(one, 2)] == ["a", "b"]
        one.cancel()


class TestLeases:
    def test_revoking_deletes_its_keys(self, store: Store, prefix: str):
        """At one revision; keys of other leases and of none stay."""
        lease, other = store.lease(60), store.lease(60)
        watch = store.watch(prefix)
        store.put(prefix + "b", b"", lease=lease.id)
        store.put(prefix + "a", b"", lease=lease.id)
        store.put(prefix + "other", b"", lease=other.id)
        store.put(prefix + "none", b"")
        lease.revoke()
        lease.revoke()
        events = collect(watch, 6)[4:]
        assert [(e.kind, e.kv.key.removeprefix(prefix)) for e in events] == [
            (EventKind.DELETE, "a"),
            (EventKind.DELETE, "b"),
        ]
        assert events[0].kv.mod_revision == events[1].kv.mod_revision
        assert [kv.key.removeprefix(prefix) for kv in store.range(prefix).kvs] == ["none", "other"]
        assert not lease.lost
        other.revoke()
        watch.cancel()

    @ONE_ETCD
    def test_an_abandoned_lease_expires(self, world: World, store: Store, prefix: str):
        lease = store.lease(TTL)
        store.put(prefix + "k", b"", lease=lease.id)
        watch = store.watch(prefix)
        lease.abandon()
        event = gone(world, watch, lease)
        assert (event.kind, event.kv.key) == (EventKind.DELETE, prefix + "k")
        watch.cancel()

    @ONE_ETCD
    def test_a_client_that_goes_leaves_its_leases_to_expire(self, world: World, store: Store, prefix: str):
        dying = world.client()
        lease = dying.lease(TTL)
        dying.put(prefix + "k", b"", lease=lease.id)
        watch = store.watch(prefix)
        dying.close()
        assert gone(world, watch, lease).kind is EventKind.DELETE
        watch.cancel()

    @ONE_ETCD
    def test_a_held_lease_outlives_its_ttl(self, world: World, store: Store, prefix: str):
        ttl = (
            5  # renewed after a third of it: a machine that stands still for three seconds after that does not lose it
        )
        lease = store.lease(ttl)
        store.put(prefix + "k", b"", lease=lease.id)
        watch = store.watch(prefix)
        world.pass_time(ttl + 1.0)
        # Patience, not hope: the delete that must not come would be here by then.
        assert watch.get(0.01 if "memory" in type(store).__module__ else ttl + 1.0) == ()
        assert store.get(prefix + "k") is not None
        assert not lease.lost
        lease.revoke()
        watch.cancel()

    def test_a_revoked_lease_is_noticed(self, world: World, store: Store, prefix: str):
        """Somebody else revokes it: its owner is told, once."""
        lost = threading.Event()
        lease = store.lease(TTL, on_lost=lost.set)
        store.put(prefix + "k", b"", lease=lease.id)
        world.revoke(lease.id)
        world.pass_time(0)
        assert lost.wait(60)
        assert lease.lost
        lease.revoke()

    def test_a_put_under_an_unknown_lease(self, store: Store, prefix: str):
        lease = store.lease(60)
        lease.revoke()
        with pytest.raises(LeaseLost):
            store.put(prefix + "k", b"", lease=lease.id)
        with pytest.raises(LeaseLost):
            store.txn([], [Put(prefix + "j", b""), Put(prefix + "k", b"", lease.id)])
        assert store.range(prefix).kvs == ()

    def test_a_put_moves_the_key_to_its_lease(self, store: Store, prefix: str):
        """From one lease to another, and to none."""
        one, two = store.lease(60), store.lease(60)
        for key in ("to two", "to none"):
            store.put(prefix + key, b"", lease=one.id)
        store.put(prefix + "to two", b"", lease=two.id)
        store.put(prefix + "to none", b"")
        one.revoke()
        assert [(kv.key.removeprefix(prefix), kv.lease) for kv in store.range(prefix).kvs] == [
            ("to none", 0),
            ("to two", two.id),
        ]
        two.revoke()
        assert [kv.key.removeprefix(prefix) for kv in store.range(prefix).kvs] == ["to none"]

    def test_the_ttl_is_granted_in_whole_seconds(self, store: Store):
        lease = store.lease(1.2)
        assert lease.ttl == 2.0
        lease.revoke()


class TestElections:
    def test_one_wins(self, store: Store, other: Store, prefix: str):
        """The second candidate learns who leads; asked again, the winner is still the winner."""
        leases = store.lease(60), other.lease(60)
        first = Election(store, prefix + "leader").try_acquire(b"a", leases[0].id)
        second = Election(other, prefix + "leader").try_acquire(b"b", leases[1].id)
        again = Election(store, prefix + "leader").try_acquire(b"a", leases[0].id)
        assert first == second == again
        assert (first.value, first.lease) == (b"a", leases[0].id)
        for lease in leases:
            lease.revoke()

    def test_a_deposed_leader_is_fenced(self, store: Store, other: Store, prefix: str):
        """Its lease goes, another leads with a greater epoch, and the old one's writes fail."""
        leases = store.lease(60), other.lease(60)
        old_election, new_election = Election(store, prefix + "leader"), Election(other, prefix + "leader")
        old = old_election.try_acquire(b"a", leases[0].id)
        assert store.txn([old.fence], [Put(prefix + "k", b"old")]).succeeded
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(new_election.wait_until_vacant, old.epoch, timeout=60)
            leases[0].revoke()
            assert waiting.result(120)
        new = new_election.try_acquire(b"b", leases[1].id)
        assert new.value == b"b"
        assert new.epoch > old.epoch
        assert not store.txn([old.fence], [Put(prefix + "k", b"old again")]).succeeded
        assert not old_election.resign(old)
        assert old_election.leader() == new
        assert new_election.resign(new)
        assert old_election.leader() is None
        leases[1].revoke()

    def test_patience(self, store: Store, prefix: str):
        lease = store.lease(60)
        election = Election(store, prefix + "leader")
        leadership = election.try_acquire(b"a", lease.id)
        assert not election.wait_until_vacant(leadership.epoch, timeout=0.05)
        lease.revoke()
        assert election.wait_until_vacant(leadership.epoch, timeout=60)

    def test_a_lost_lease_cannot_lead(self, store: Store, prefix: str):
        lease = store.lease(60)
        lease.revoke()
        with pytest.raises(LeaseLost):
            Election(store, prefix + "leader").try_acquire(b"a", lease.id)


class TestClosing:
    def test_a_closed_store(self, world: World, prefix: str):
        """Calls and watches say so, at once; closing again is no error."""
        store = world.client()
        watch = store.watch(prefix)
        lease = store.lease(60)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(watch.get, 120)
            store.close()
            with pytest.raises(StoreError, match="closed"):
                waiting.result(60)
        for call in (
            lambda: store.get("k"),
            lambda: store.put("k", b""),
            lambda: store.watch("k"),
            lambda: store.lease(5),
        ):
            with pytest.raises(StoreError, match="closed"):
                call()
        assert not lease.lost
        lease.revoke()
        watch.cancel()
        store.close()
