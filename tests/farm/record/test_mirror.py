"""A coordinator's copy of the record: fed by the watch alone, it is what a fresh reading would be."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterator

import pytest

from dtf_lightning.errors import RevisionCompacted, StoreError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import Delete, EventKind, KeyValue, Put, Store, WatchEvent
from dtf_lightning.farm.record import follower as follower_module
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.follower import Follower, FollowerFailed, RecordChanged, RecordRead, read_record
from dtf_lightning.farm.record.keys import LIVE, FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import (
    Attempt,
    CoordinatorRecord,
    Envelope,
    LeaderRecord,
    TaskOutcome,
    TaskSpecification,
    WorkerRecord,
)

KEYS = FarmKeys("lab")
TASK = TaskSpecification(command=("a",))
DONE = Envelope(outcome=TaskOutcome.COMPLETED, attempt=1, revision=1)
VALUES = {
    Kind.LEADER: [LeaderRecord(coordinator=name) for name in "ab"],
    Kind.COORDINATOR: [CoordinatorRecord(address=name, version="1") for name in "ab"],
    Kind.WORKER: [WorkerRecord(coordinator=name, connection="", session="") for name in "ab"],
    Kind.TASK: [TASK, TaskSpecification(command=("b",))],
    Kind.ATTEMPT: [Attempt(number=1, workers=("w",)), Attempt(number=2)],
    Kind.DONE: [DONE],
}


def put(kind: Kind, *names: str, value, revision: int, created: int | None = None) -> WatchEvent:
    data = value if isinstance(value, bytes) else encode(value)
    kv = KeyValue(KEYS.key(kind, *names), data, created or revision, revision, 1)
    return WatchEvent(EventKind.PUT, kv)


def deleted(kind: Kind, *names: str, revision: int) -> WatchEvent:
    return WatchEvent(EventKind.DELETE, KeyValue(KEYS.key(kind, *names), b"", 0, revision, 0))


def contents(mirror: Mirror):
    return {kind: dict(mirror.all(kind)) for kind in LIVE}


class TestEvents:
    def test_a_tasks_life(self):
        """Submitted, assigned, done: what changes and what is kept."""
        mirror = Mirror(KEYS)
        (submitted,) = mirror.apply([put(Kind.TASK, "t", value=TASK, revision=5)])
        assert (submitted.kind, submitted.names, submitted.before) == (Kind.TASK, ("t",), None)
        assert submitted.after.value == TASK
        attempt = Attempt(number=1, workers=("w",))
        (assigned,) = mirror.apply([put(Kind.ATTEMPT, "t", value=attempt, revision=7)])
        assert mirror.get(Kind.ATTEMPT, "t") == assigned.after
        assert mirror.seen(Kind.ATTEMPT, "t") == 7
        changes = mirror.apply(
            [
                put(Kind.DONE, "t", value=DONE, revision=9),
                deleted(Kind.ATTEMPT, "t", revision=9),
                deleted(Kind.TASK, "t", revision=9),
            ]
        )
        assert [(change.kind, change.revision) for change in changes] == [
            (Kind.DONE, 9),
            (Kind.ATTEMPT, 9),
            (Kind.TASK, 9),
        ]
        assert changes[0].after.value == DONE
        assert changes[1].before == assigned.after
        assert changes[1].after is None
        assert mirror.revision == 9
        assert not any(contents(mirror).values())
        assert mirror.seen(Kind.ATTEMPT, "t") == 0

    def test_what_is_done_is_told_and_not_kept(self):
        mirror = Mirror(KEYS)
        assert [change.after.value for change in mirror.apply([put(Kind.DONE, "t", value=DONE, revision=5)])] == [DONE]
        (gone,) = mirror.apply([deleted(Kind.DONE, "t", revision=6)])
        assert (gone.before, gone.after) == (None, None)

    def test_the_leader(self):
        """Its epoch is the create revision, which a change of its value leaves as it is."""
        mirror = Mirror(KEYS)
        mirror.apply([put(Kind.LEADER, value=LeaderRecord(coordinator="a"), revision=5)])
        mirror.apply([put(Kind.LEADER, value=LeaderRecord(coordinator="a"), revision=8, created=5)])
        held = mirror.get(Kind.LEADER)
        assert (held.create_revision, held.mod_revision) == (5, 8)

    def test_a_value_that_cannot_be_read(self):
        """Overlooked as if it were not there, listed with its reason, and forgotten when it is mended or goes."""
        mirror = Mirror(KEYS)
        bad = KEYS.key(Kind.TASK, "bad")
        assert mirror.apply([put(Kind.TASK, "bad", value=b'{"v":99}', revision=5)]) == []
        assert "written by a newer release" in mirror.unreadable[bad]
        assert mirror.apply([deleted(Kind.TASK, "bad", revision=6)]) == []
        assert not mirror.unreadable
        mirror.apply([put(Kind.TASK, "bad", value=TASK, revision=7)])
        (gone,) = mirror.apply([put(Kind.TASK, "bad", value=b"?", revision=8)])
        assert (gone.before.value, gone.after) == (TASK, None)
        (back,) = mirror.apply([put(Kind.TASK, "bad", value=TASK, revision=9)])
        assert (back.before, back.after.value) == (None, TASK)
        assert not mirror.unreadable

    def test_keys_of_another_release(self):
        mirror = Mirror(KEYS)
        kv = KeyValue(KEYS.prefix + "dreams/x", b"", 5, 5, 1)
        assert mirror.apply([WatchEvent(EventKind.PUT, kv)]) == []
        assert mirror.revision == 5
        assert mirror.apply([put(Kind.PLAN, "p", value=b'{"v":1}', revision=6)]) == []
        assert list(mirror.unreadable) == [KEYS.key(Kind.PLAN, "p")]


def write_anything(store: Store, keys: FarmKeys, chance: random.Random) -> None:
    """One transaction of a few records of any kind, some of them unreadable."""
    operations = {}
    for _ in range(chance.randint(1, 4)):
        kind = chance.choice(list(VALUES))
        key = keys.leader if kind is Kind.LEADER else keys.key(kind, chance.choice("xyz"))
        value = b"?" if chance.random() < 0.1 else encode(chance.choice(VALUES[kind]))
        operations[key] = Delete(key) if chance.random() < 0.3 else Put(key, value)
    store.txn([], list(operations.values()))


def test_the_watch_alone_makes_what_a_reading_shows(store: Store, farm: str):
    """A mirror that begins at any moment, follows the watch, and begins anew at times, is equal to a fresh one."""
    keys, chance = FarmKeys(farm), random.Random(1)
    for _ in range(10):
        write_anything(store, keys, chance)
    mirror = Mirror(keys)
    read = read_record(store, keys)
    mirror.load(read.kvs, read.revision)
    watch = store.watch(keys.prefix, start_revision=read.revision + 1)
    followed = contents(mirror)
    for round_ in range(20):
        for _ in range(5):
            write_anything(store, keys, chance)
        marker = store.put(keys.key(Kind.COORDINATOR, "marker"), encode(VALUES[Kind.COORDINATOR][0]))
        goal = read_record(store, keys)
        if round_ % 5 == 4:
            changes = mirror.load(goal.kvs, goal.revision)
        else:
            changes = []
            while mirror.revision < marker:
                changes += mirror.apply(watch.get(60))
        for change in changes:
            if change.kind not in LIVE:
                continue
            if round_ % 5 != 4:
                assert followed[change.kind].get(change.names) == change.before
            followed[change.kind][change.names] = change.after
        fresh = Mirror(keys)
        fresh.load(goal.kvs, goal.revision)
        assert contents(mirror) == contents(fresh)
        assert set(mirror.unreadable) >= set(fresh.unreadable)
        kept = {kind: {names: held for names, held in records.items() if held} for kind, records in followed.items()}
        assert kept == contents(fresh)
    watch.cancel()


class Heard:
    """What a follower pushes."""

    def __init__(self) -> None:
        self.pushed: queue.SimpleQueue = queue.SimpleQueue()

    def next(self, expected: type):
        item = self.pushed.get(timeout=60)
        assert isinstance(item, expected), item
        return item


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def followed(store: Store, farm: str, heard: Heard) -> Iterator[FarmKeys]:
    """A farm that is followed."""
    keys = FarmKeys(farm)
    store.put(keys.key(Kind.TASK, "before"), encode(TASK))
    store.put(keys.key(Kind.DONE, "done"), encode(DONE))
    follower = Follower(store, keys, heard.pushed.put)
    follower.start()
    yield keys
    follower.close()
    follower.close()
    assert heard.pushed.empty()


class TestFollower:
    def test_a_reading_and_then_the_watch(self, store: Store, followed: FarmKeys, heard: Heard):
        """What was done before is not read; what is done from now on is told."""
        read = heard.next(RecordRead)
        assert [kv.key for kv in read.kvs] == [followed.key(Kind.TASK, "before")]
        revision = store.put(followed.key(Kind.DONE, "now"), encode(DONE))
        (event,) = heard.next(RecordChanged).events
        assert (event.kv.key, event.kv.mod_revision) == (followed.key(Kind.DONE, "now"), revision)

    def test_a_batch_comes_together(self, store: Store, followed: FarmKeys, heard: Heard):
        heard.next(RecordRead)
        store.txn([], [Put(followed.key(Kind.TASK, f"{number}"), encode(TASK)) for number in range(50)])
        assert len(heard.next(RecordChanged).events) == 50

    def test_many_pages_at_one_revision(self, store: Store, farm: str, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(follower_module, "PAGE", 7)
        keys = FarmKeys(farm)
        store.txn([], [Put(keys.key(Kind.TASK, f"{number:03}"), encode(TASK)) for number in range(100)])
        read = read_record(store, keys)
        assert len(read.kvs) == 100
        assert read.kvs == store.range(keys.prefix, revision=read.revision).kvs


def test_an_outage_with_a_compaction(heard: Heard):
    """The watch's place is gone when etcd is back: all is read again, and the mirror's changes tell what is missing."""
    store = MemoryStore()
    other = MemoryStore(store.backend)
    for name in ("stays", "goes"):
        store.put(KEYS.key(Kind.TASK, name), encode(TASK))
    follower = Follower(store, KEYS, heard.pushed.put)
    follower.start()
    mirror = Mirror(KEYS)
    read = heard.next(RecordRead)
    mirror.load(read.kvs, read.revision)
    store.reachable = False
    other.delete(KEYS.key(Kind.TASK, "goes"))
    other.put(KEYS.key(Kind.TASK, "comes"), encode(TASK))
    other.maintenance.compact(other.put(KEYS.key(Kind.DONE, "goes"), encode(DONE)))
    store.reachable = True
    read = heard.next(RecordRead)
    changes = mirror.load(read.kvs, read.revision)
    assert [(change.names, change.after is not None) for change in changes] == [(("comes",), True), (("goes",), False)]
    follower.close()


def test_a_compaction_while_it_is_read(monkeypatch: pytest.MonkeyPatch):
    """Read again, at a newer revision."""
    store = MemoryStore()
    store.put(KEYS.key(Kind.TASK, "a"), encode(TASK))
    ranges, read = store.range, []

    def compacting(prefix: str, **options):
        read.append(prefix)
        if len(read) == 3:
            store.maintenance.compact(store.put(KEYS.key(Kind.TASK, "b"), encode(TASK)))
        return ranges(prefix, **options)

    monkeypatch.setattr(store, "range", compacting)
    result = read_record(store, KEYS)
    assert [kv.key for kv in result.kvs] == [KEYS.key(Kind.TASK, "a"), KEYS.key(Kind.TASK, "b")]
    assert len(read) == 3 + len(LIVE)


def test_a_record_that_is_compacted_all_the_time(monkeypatch: pytest.MonkeyPatch):
    """Given up, in the store's words."""
    store = MemoryStore()
    ranges = store.range

    def compacting(prefix: str, *, revision: int, **options):
        if revision:
            store.maintenance.compact(store.put(KEYS.leader, b""))
        return ranges(prefix, revision=revision, **options)

    monkeypatch.setattr(store, "range", compacting)
    with pytest.raises(RevisionCompacted):
        read_record(store, KEYS)


def test_a_start_in_an_outage(heard: Heard):
    """It is tried again until etcd is there."""
    store = MemoryStore()
    store.reachable = False
    follower = Follower(store, KEYS, heard.pushed.put)
    follower.start()
    assert heard.pushed.empty()
    store.reachable = True
    heard.next(RecordRead)
    follower.close()


def test_a_fault_is_told_once(heard: Heard, caplog):
    """A store that somebody has closed: the copy would stand still, so its owner has to know."""
    store = MemoryStore()
    follower = Follower(store, KEYS, heard.pushed.put)
    follower.start()
    heard.next(RecordRead)
    store.close()
    failed = heard.next(FollowerFailed)
    assert isinstance(failed.error, StoreError)
    assert "is not followed any more" in caplog.text
    follower.close()
    assert heard.pushed.empty()
