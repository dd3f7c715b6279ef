"""Transactions inside a transaction: what every `Store` makes of them."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import LeaseLost, StoreError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Compare, Delete, EventKind, Get, Put, Store, Txn
from support.store_worlds import EtcdWorld, collect


def absent(key: str) -> Compare:
    return Compare(key, "version", "=", 0)


def contents(store: Store, prefix: str) -> dict[str, bytes]:
    return {kv.key.removeprefix(prefix): kv.value for kv in store.range(prefix).kvs}


class TestOutcomes:
    def test_each_takes_its_own_branch(self, store: Store, prefix: str):
        """One fails, those beside it go through; gets and results keep their order, a get sees earlier writes."""
        store.put(prefix + "old", b"1")
        result = store.txn(
            [],
            [
                Txn((absent(prefix + "a"),), (Put(prefix + "a", b"1"), Get(prefix + "a"))),
                Get(prefix + "a"),
                Txn((absent(prefix + "old"),), (Put(prefix + "b", b"1"),), (Get(prefix + "old"), Get(prefix + "b"))),
                Txn((), (Delete(prefix + "old"),)),
            ],
        )
        assert result.succeeded
        assert [nested.succeeded for nested in result.nested] == [True, False, True]
        assert [kv.value for kv in result.gets[0]] == [b"1"]
        assert [[kv.value for kv in kvs] for kvs in result.nested[0].gets] == [[b"1"]]
        assert [[kv.value for kv in kvs] for kvs in result.nested[1].gets] == [[b"1"], []]
        assert contents(store, prefix) == {"a": b"1"}

    def test_the_outer_compares_count_for_all(self, store: Store, prefix: str):
        inner = Txn((), (Put(prefix + "a", b""),))
        other = Txn((), (Put(prefix + "b", b""),))
        result = store.txn([Compare(prefix + "fence", "version", "=", 1)], [inner], [other])
        assert (result.succeeded, [nested.succeeded for nested in result.nested]) == (False, [True])
        assert list(contents(store, prefix)) == ["b"]

    def test_one_revision_and_one_batch(self, store: Store, prefix: str):
        """All of them share a revision, which a refused one tells too; a watch gives them out together, in order."""
        before = store.put(prefix + "x", b"")
        watch = store.watch(prefix)
        result = store.txn(
            [],
            [
                Txn((absent(f"{prefix}{n}"), absent(prefix + ("x" if n == 3 else "y"))), (Put(f"{prefix}{n}", b""),))
                for n in range(5)
            ],
        )
        assert result.revision == before + 1
        assert [nested.succeeded for nested in result.nested] == [True, True, True, False, True]
        assert {nested.revision for nested in result.nested} == {result.revision}
        batch = watch.get(60)
        assert [event.kv.key.removeprefix(prefix) for event in batch] == ["0", "1", "2", "4"]
        assert {event.kv.mod_revision for event in batch} == {result.revision}
        watch.cancel()

    def test_nothing_done_is_no_revision(self, store: Store, prefix: str):
        revision = store.put(prefix + "x", b"")
        result = store.txn([], [Txn((absent(prefix + "x"),), (Put(prefix + "y", b""),))])
        assert result.revision == result.nested[0].revision == revision
        assert result.succeeded

    def test_compares_see_the_state_before_the_batch(self, store: Store, prefix: str):
        """The trap of batching: two that depend on each other both succeed, and one never sees the other's write."""
        result = store.txn(
            [],
            [
                Txn((absent(prefix + "a"),), (Put(prefix + "b", b"first"),)),
                Txn((absent(prefix + "b"),), (Put(prefix + "a", b"second"),)),
                Txn((Compare(prefix + "b", "version", "=", 1),), (Put(prefix + "c", b""),)),
            ],
        )
        assert [nested.succeeded for nested in result.nested] == [True, True, False]
        assert contents(store, prefix) == {"a": b"second", "b": b"first"}

    def test_a_transaction_in_a_transaction_in_a_transaction(self, store: Store, prefix: str):
        innermost = Txn((absent(prefix + "x"),), (Put(prefix + "a", b""),), (Put(prefix + "b", b""),))
        store.put(prefix + "x", b"")
        result = store.txn([], [Txn((), (innermost, Get(prefix + "x")))])
        assert result.nested[0].nested[0].succeeded is False
        assert len(result.nested[0].gets[0]) == 1
        assert list(contents(store, prefix)) == ["b", "x"]


class TestRefusals:
    """Each of these rejects the whole batch, and changes nothing."""

    @pytest.mark.parametrize(
        "batch",
        [
            lambda p: [Txn((), (Put(p, b"1"),)), Txn((), (Put(p, b"2"),))],
            lambda p: [Txn((), (Put(p, b"1"),)), Txn((absent(p),), (), (Put(p, b"2"),))],
            lambda p: [Txn((), (Delete(p),)), Txn((), (Put(p, b"2"),))],
            lambda p: [Txn((), (Delete("/test/", prefix=True),)), Txn((), (Put(p, b"2"),))],
            lambda p: [Txn((), (Put(p, b"1"),)), Put(p, b"2")],
            lambda p: [Txn((), (Put(p, b"1"),)), Delete(p)],
            lambda p: [Txn((), (Put(p, b"1"), Delete(p)))],
        ],
        ids=[
            "put put",
            "put, else put",
            "delete put",
            "delete-prefix put",
            "put, outer put",
            "put, outer delete",
            "inside",
        ],
    )
    def test_writing_a_key_twice(self, store: Store, prefix: str, batch):
        with pytest.raises(StoreError, match="duplicate key"):
            store.txn([], [*batch(prefix + "k"), Txn((), (Put(prefix + "other", b""),))])
        assert contents(store, prefix) == {}

    def test_writing_a_key_twice_where_etcd_lets_it_pass(self, store: Store, prefix: str):
        """Either branch of one transaction, deletes of several, and a delete after a put."""
        store.txn([], [Txn((absent(prefix + "x"),), (Put(prefix + "k", b"1"),), (Put(prefix + "k", b"2"),))])
        assert contents(store, prefix) == {"k": b"1"}
        watch = store.watch(prefix)
        store.txn(
            [],
            [Txn((), (Put(prefix + "k", b"3"),)), Txn((), (Delete(prefix + "k"),)), Txn((), (Delete(prefix + "k"),))],
        )
        assert [event.kind for event in collect(watch, 2)] == [EventKind.PUT, EventKind.DELETE]
        assert contents(store, prefix) == {}
        watch.cancel()

    def test_a_lease_that_is_gone(self, store: Store, prefix: str):
        """Only where the branch that runs would put under it."""
        lease = store.lease(60)
        lease.revoke()
        under = Put(prefix + "k", b"", lease.id)
        other = Txn((), (Put(prefix + "other", b""),))
        with pytest.raises(LeaseLost):
            store.txn([], [other, Txn((), (under,))])
        assert contents(store, prefix) == {}
        assert store.txn([], [other, Txn((absent(prefix + "k"),), (), (under,))]).succeeded

    @pytest.mark.parametrize(
        ("num_transactions", "num_each", "fits"),
        [(125, 3, True), (126, 3, False), (126, 2, True), (3, 125, True), (3, 126, False)],
    )
    def test_how_much_fits(self, store: Store, prefix: str, num_transactions: int, num_each: int, fits: bool):
        """The longest list of the outer transaction and of the longest inside together: 128."""
        batch = [
            Txn(tuple(absent(f"{prefix}{n}/{m}") for m in range(num_each)), (Put(f"{prefix}{n}/0", b""),))
            for n in range(num_transactions)
        ]
        if fits:
            assert all(nested.succeeded for nested in store.txn([], batch).nested)
        else:
            with pytest.raises(StoreError, match="too many operations"):
                store.txn([], batch)

    def test_an_empty_key(self, store: Store):
        with pytest.raises(StoreError, match="key is not provided"):
            store.txn([], [Txn((), (Put("", b""),))])

    def test_messages_are_short(self, store: Store, prefix: str):
        """Of a batch of hundreds of keys the first few are named."""
        same = tuple(Put(f"{prefix}{n}", b"") for n in range(60))
        with pytest.raises(StoreError) as caught:
            store.txn([], [Txn((), same), Txn((), same)])
        assert len(str(caught.value)) < 400


KEYS = st.sampled_from("abc")
COMPARES = st.builds(Compare, KEYS, st.sampled_from(["version"]), st.sampled_from("=><"), st.integers(0, 2))
WRITES = st.one_of(st.builds(Put, KEYS, st.binary(max_size=2)), st.builds(Delete, KEYS), st.builds(Get, KEYS))
BRANCHES = st.lists(WRITES, max_size=3).map(tuple)
NESTED = st.builds(Txn, st.lists(COMPARES, max_size=2).map(tuple), BRANCHES, BRANCHES)


def moved(operation, prefix: str):
    """The same under a prefix."""
    match operation:
        case Txn(compares, then, otherwise):
            return Txn(*(tuple(moved(o, prefix) for o in part) for part in (compares, then, otherwise)))
        case Compare(key, target, op, operand):
            return Compare(prefix + key, target, op, operand)
        case Put(key, value):
            return Put(prefix + key, value)
    return type(operation)(prefix + operation.key)


def answer(client: Store, operations, prefix: str):
    """All that can be seen of a transaction but for its revisions."""

    def plain(result):
        gets = [[(kv.key.removeprefix(prefix), kv.value, kv.version) for kv in kvs] for kvs in result.gets]
        return result.succeeded, gets, [plain(nested) for nested in result.nested]

    try:
        return plain(client.txn([], [moved(operation, prefix) for operation in operations]))
    except StoreError as error:
        return str(error).rpartition("etcdserver: ")[2].split(";")[0]


@given(st.lists(st.lists(st.one_of(NESTED, WRITES), max_size=4), min_size=1, max_size=4))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_the_twin_does_what_etcd_does(store_of_all: Store, transactions):
    """Any few transactions of nested ones, one after the other: the same answers, errors and keys."""
    prefix = f"/test/{uuid.uuid4().hex}/"
    memory = MemoryStore()
    for operations in transactions:
        assert answer(memory, operations, prefix) == answer(store_of_all, operations, prefix)
    seen = [[(kv.key, kv.value, kv.version) for kv in client.range(prefix).kvs] for client in (memory, store_of_all)]
    assert seen[0] == seen[1]


@pytest.fixture(scope="module")
def store_of_all(etcd: EmbeddedEtcd):
    """One client for all examples of a property."""
    client = EtcdWorld(etcd.endpoint).client()
    yield client
    client.close()
