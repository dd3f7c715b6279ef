"""Which writes share a batch: the rule, held to a slow reference that makes one write after the other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import Compare, Delete, Put, Store
from dtf_lightning.farm.record.guarded import Batch, Guarded, Limits
from dtf_lightning.farm.record.lane import Lane


def put(key: str, *, compares: str = "", reads: str = "", size: int = 1) -> Guarded:
    guards = tuple(Compare(compared, "version", "=", 0) for compared in compares)
    return Guarded(key, guards, (Put(key, b"x" * size),), tuple(reads))


def places(*writes: Guarded, limits: Limits | None = None) -> str:
    """The first letters of where each goes."""
    batch = Batch(limits or Limits())
    return "".join(batch.offer(write).value[0] for write in writes)


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([put("a"), put("b"), put("c")], "iii"),
        ([put("a", compares="xy"), put("b", compares="xy")], "ii"),  # both look, nobody writes
        ([put("a"), put("a")], "il"),
        ([put("a"), put("b", compares="a")], "il"),
        ([put("a"), put("b", reads="a")], "il"),
        ([put("a", compares="b"), put("b")], "il"),  # tried again after a lost answer, the first would see the second
        ([put("a", reads="b"), put("b")], "il"),
        ([put("a"), put("a"), put("b")], "ili"),
        ([put("a"), put("b", compares="a"), put("b")], "ill"),  # the third must not overtake the second
        ([put("a"), put("b", compares="a"), put("c", compares="b")], "ill"),
        ([put("a"), put("b", compares="ac"), put("c")], "ill"),  # the second looks at what the third writes
    ],
)
def test_who_waits(writes: list[Guarded], expected: str):
    assert places(*writes) == expected


def test_limits():
    """Of number, of bytes, and of what etcd counts: the number of writes and the widest of them together."""
    many = [put(f"k{number}") for number in range(200)]
    assert places(*many, limits=Limits(num_writes=3))[:5] == "iiiff"
    assert places(*(put(f"k{number}", size=1000) for number in range(9)), limits=Limits(num_bytes=4500))[:6] == "iiiiff"
    assert places(*many).count("i") == 125
    wide = put("wide", compares="abcdefghij")
    assert places(*many[:117], wide, put("more")) == "i" * 118 + "f"
    assert places(*many[:118], wide) == "i" * 118 + "f"


def test_a_first_write_goes_in_however_large():
    assert places(put("a", size=5000), put("b"), limits=Limits(num_bytes=1000)) == "if"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Guarded("x", (), (Put("a", b""), Delete("a"))),
        lambda: Guarded("x", (), (Delete("a", prefix=True),)),
        lambda: Guarded("x", tuple(Compare("a", "version", "=", 0) for _ in range(128)), ()),
    ],
)
def test_what_is_no_guarded_write(wrong):
    with pytest.raises(AssertionError):
        wrong()


# --- batches are not seen --------------------------------------------------------------------------------------------

KEYS = st.sampled_from("abc")
COMPARES = st.builds(Compare, KEYS, st.just("version"), st.sampled_from("=>"), st.integers(0, 1))
OPERATIONS = st.one_of(st.builds(Put, KEYS, st.binary(max_size=1)), st.builds(Delete, KEYS))
WRITES = st.builds(
    Guarded,
    st.just("any"),
    st.lists(COMPARES, max_size=2).map(tuple),
    st.lists(OPERATIONS, min_size=1, max_size=2, unique_by=lambda operation: operation.key).map(tuple),
    st.lists(KEYS, max_size=2).map(tuple),
)


def one_by_one(store: Store, write: Guarded):
    """The reference: a transaction of its own."""
    nested = write.transaction()
    result = store.txn(nested.compares, nested.then, nested.otherwise)
    return result.succeeded, [[(kv.key, kv.value, kv.version) for kv in kvs] for kvs in result.gets]


def batched(writes, store: Store, limits: Limits):
    """What a lane makes of writes that all came at once."""
    lane = Lane(store, "test", limits=limits)
    futures = [lane.submit(write, lambda outcome: outcome) for write in writes]
    while lane.num_waiting:
        assert lane.step()
    return [
        (outcome.applied, [[(kv.key, kv.value, kv.version)] if kv else [] for kv in outcome.found])
        for outcome in (future.result(0) for future in futures)
    ]


def check_not_seen(writes, limits: Limits) -> None:
    stores = MemoryStore(), MemoryStore()
    assert batched(writes, stores[0], limits) == [one_by_one(stores[1], write) for write in writes]
    contents = [[(kv.key, kv.value, kv.version) for kv in store.range("").kvs] for store in stores]
    assert contents[0] == contents[1]


@given(
    st.lists(WRITES, min_size=2, max_size=12),
    st.builds(Limits, num_writes=st.integers(1, 8), num_bytes=st.sampled_from([200, 100_000])),
)
@settings(max_examples=100, deadline=None)
def test_batching_is_not_seen(writes, limits: Limits):
    """Any writes, in batches of any size, end as if each had been made alone, in order."""
    check_not_seen(writes, limits)


def test_five_hundred_queues_are_not_seen():
    """Writes that depend on each other a lot, of one put and two compares, from a seed: what must not overtake."""
    chance = random.Random(1)
    for _ in range(500):
        writes = [
            Guarded(
                "any",
                tuple(Compare(chance.choice("abc"), "version", chance.choice("=>"), 0) for _ in range(2)),
                (Put(chance.choice("abc"), b"%d" % number),),
            )
            for number in range(6)
        ]
        check_not_seen(writes, Limits())
