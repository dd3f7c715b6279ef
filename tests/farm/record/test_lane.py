"""A lane: what shares a transaction, what becomes of lost answers, outages, rejections, and of its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

from dtf_lightning.errors import LeaseLost, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import Compare, Put, Store
from dtf_lightning.farm.record.guarded import Guarded, Limits, Outcome
from dtf_lightning.farm.record.lane import Lane
from support.farm.stores import FaultyStore, GatedStore
from support.store_worlds import ManualClock

PATIENCE = 60


def new(key: str, value: bytes = b"v", lease: int = 0) -> Guarded:
    """Create a key; if it is there, read it."""
    return Guarded(f"new {key}", (Compare(key, "version", "=", 0),), (Put(key, value, lease),), (key,))


def same(outcome: Outcome) -> Outcome:
    return outcome


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def running(store: Store) -> Iterator[Lane]:
    """A lane with its thread, on the twin and on etcd."""
    lane = Lane(store, "test")
    lane.start()
    yield lane
    lane.close()


class TestCommitting:
    def test_each_is_told_its_own_outcome(self, running: Lane, store: Store, prefix: str):
        store.put(prefix + "3", b"old")
        futures = [running.submit(new(f"{prefix}{number}"), same) for number in range(6)]
        outcomes = [future.result(PATIENCE) for future in futures]
        assert [outcome.applied for outcome in outcomes] == [True, True, True, False, True, True]
        assert [kv.value for kv in outcomes[3].found] == [b"old"]
        assert not any(outcome.unsure for outcome in outcomes)
        for number, outcome in enumerate(outcomes):
            if outcome.applied:
                assert store.get(f"{prefix}{number}").mod_revision == outcome.revision

    def test_what_came_meanwhile_goes_together(self, memory: MemoryStore):
        """One write under way; 50 more come; then these are one transaction, of one revision."""
        store = GatedStore(memory)
        lane = Lane(store, "test")
        lane.start()
        first = lane.submit(new("first"), same)
        assert store.asked.acquire(timeout=PATIENCE)
        futures = [lane.submit(new(f"k{number}"), same) for number in range(50)]
        store.gate.release(2)
        assert len({future.result(PATIENCE).revision for future in futures}) == 1
        assert first.result(PATIENCE).applied
        assert store.batches == [1, 50]
        lane.close()
        assert lane.counts.batches == 2

    def test_many_threads(self, running: Lane, store: Store, prefix: str):
        """Eight threads want the same hundred keys: each key is created once, all are answered."""
        with ThreadPoolExecutor(8) as pool:
            futures = list(pool.map(lambda n: running.submit(new(f"{prefix}{n % 100}"), same), range(800)))
        assert not wait(futures, PATIENCE).not_done
        assert sum(future.result().applied for future in futures) == 100
        assert {kv.version for kv in store.range(prefix).kvs} == {1}

    def test_a_full_batch(self, running: Lane, store: Store, prefix: str):
        """More than one transaction takes, and large values: all of it gets there."""
        futures = [running.submit(new(f"{prefix}s{number}"), same) for number in range(700)]
        futures += [running.submit(new(f"{prefix}l{number}", b"x" * 300_000), same) for number in range(12)]
        assert all(future.result(PATIENCE).applied for future in futures)
        assert store.count(prefix) == 712

    def test_dependent_writes_are_in_order(self, running: Lane, store: Store, prefix: str):
        """Each compares what the one before it has written: all are made, though they came at once."""
        key = prefix + "k"
        futures = [
            running.submit(Guarded("next", (Compare(key, "version", "=", number),), (Put(key, b"%d" % number),)), same)
            for number in range(50)
        ]
        assert all(future.result(PATIENCE).applied for future in futures)
        assert store.get(key).value == b"49"

    def test_futures_are_completed_a_batch_at_a_time(self, memory: MemoryStore):
        """As an event loop wants it: one call for a batch."""
        calls = []
        lane = Lane(memory, "test", deliver=calls.append)
        futures = [lane.submit(new(f"k{number}"), same) for number in range(20)]
        lane.step()
        assert len(calls) == 1
        assert not any(future.done() for future in futures)
        calls[0]()
        assert all(future.result(0).applied for future in futures)

    def test_a_verdict_that_fails_is_its_writers_alone(self, memory: MemoryStore):
        def fail(outcome: Outcome) -> None:
            raise ValueError("a verdict's bug")

        lane = Lane(memory, "test")
        bad, good = lane.submit(new("a"), fail), lane.submit(new("b"), same)
        lane.step()
        with pytest.raises(ValueError, match="a verdict's bug"):
            bad.result(0)
        assert good.result(0).applied

    def test_a_write_can_be_cancelled_until_it_is_taken(self, memory: MemoryStore):
        store = FaultyStore(memory, ["away"])
        lane = Lane(store, "test")
        gone, kept = lane.submit(new("gone"), same), lane.submit(new("kept"), same)
        assert gone.cancel()
        lane.step()
        assert not kept.cancel()
        lane.step()
        assert kept.result(0).applied
        assert [kv.key for kv in memory.range("").kvs] == ["kept"]


class TestLostAnswers:
    @pytest.mark.parametrize("fault", ["applied", "lost"])
    def test_it_is_tried_again(self, store: Store, prefix: str, fault: str):
        """Once made, whichever it was; what came meanwhile goes with it."""
        lane = Lane(FaultyStore(store, [fault, fault]), "test")
        future = lane.submit(new(prefix + "a"), same)
        assert not lane.step()
        later = lane.submit(new(prefix + "b"), same)
        assert not lane.step()
        assert lane.step()
        outcome = future.result(0)
        assert outcome.unsure
        assert outcome.applied is (fault == "lost")
        if fault == "applied":
            assert [kv.value for kv in outcome.found] == [b"v"]
        assert later.done()
        assert [kv.version for kv in store.range(prefix).kvs] == [1, 1]
        assert lane.counts.lost_answers == 2

    def test_a_first_write_never_sees_a_later_one(self, memory: MemoryStore):
        """Refused for want of a key that the next one writes: so it stays, also where a batch is tried again."""
        lane = Lane(FaultyStore(memory, ["applied", "applied", "applied"]), "test")
        first = Guarded("first", (Compare("b", "version", ">", 0),), (Put("a", b""),), ("b",))
        futures = [lane.submit(first, same), lane.submit(new("b"), same)]
        while lane.num_waiting:
            lane.step()
        assert (futures[0].result(0).applied, futures[0].result(0).found) == (False, (None,))
        assert [kv.key for kv in memory.range("").kvs] == ["b"]

    def test_nobody_can_tell(self, memory: MemoryStore, clock: ManualClock):
        """Its time is over after an answer was lost: that is said, and it is not tried again."""
        lane = Lane(FaultyStore(memory, ["applied", "away"]), "test", clock=clock)
        future = lane.submit(new("a"), same, timeout=5)
        lane.step()
        clock.now += 5
        lane.step()
        with pytest.raises(OutcomeUnknown, match=r"new a: its time was over.* may or may not have been made"):
            future.result(0)
        assert lane.num_waiting == 0


class TestOutages:
    def test_writes_wait(self, memory: MemoryStore):
        """In their order, behind a thread that does not give up; then all are made."""
        memory.backend.available = False
        lane = Lane(memory, "test")
        lane.start()
        futures = [lane.submit(new(f"k{number}"), same) for number in range(10)]
        waited = wait(futures, 0.1)
        assert not waited.done
        memory.backend.available = True
        assert all(future.result(PATIENCE).applied for future in futures)
        lane.close()
        assert lane.counts.outages > 0

    def test_patience_ends(self, memory: MemoryStore, clock: ManualClock):
        """Each write has its own; those that have time left are made afterwards."""
        memory.backend.available = False
        lane = Lane(memory, "test", clock=clock, limits=Limits(num_writes=1))
        long, short, shorter = (lane.submit(new(str(n)), same, timeout=n) for n in (30, 10, 5))
        lane.step()
        clock.now += 10
        lane.step()
        for future in (short, shorter):
            with pytest.raises(StoreUnavailable, match="its time was over before etcd took it; it was not made"):
                future.result(0)
        assert not long.done()
        memory.backend.available = True
        lane.step()
        assert long.result(0).applied
        assert [kv.key for kv in memory.range("").kvs] == ["30"]


class TestRejections:
    def test_only_who_is_to_blame(self, store: Store, prefix: str):
        """Of forty writes two are under a lease that is gone, and one is larger than any request."""
        lease = store.lease(60)
        lease.revoke()
        lane = Lane(store, "test")
        writes = [new(f"{prefix}{number}", lease=lease.id if number in (7, 8) else 0) for number in range(40)]
        futures = [lane.submit(write, same) for write in writes]
        while lane.num_waiting:
            assert lane.step()
        for number, future in enumerate(futures):
            if number in (7, 8):
                with pytest.raises(LeaseLost):
                    future.result(0)
            else:
                assert future.result(0).applied
        assert store.count(prefix) == 38
        assert lane.counts.rejected == 2

    def test_a_full_etcd(self, memory: MemoryStore):
        """Nobody is to blame: one transaction tells all of them."""

        class Full(FaultyStore):
            def txn(self, compares, then, otherwise=(), *, timeout=None):
                self.batches.append(len(then))
                raise StoreFull("mvcc: database space exceeded")

        store = Full(memory)
        lane = Lane(store, "test")
        futures = [lane.submit(new(f"k{number}"), same) for number in range(40)]
        assert lane.step()
        assert store.batches == [40]
        for future in futures:
            with pytest.raises(StoreFull):
                future.result(0)

    def test_too_large(self, etcd, prefix: str):
        """Real etcd only; the twin takes any size."""
        from support.store_worlds import EtcdWorld

        store = EtcdWorld(etcd.endpoint).client()
        lane = Lane(store, "test")
        small, large = lane.submit(new(prefix + "s"), same), lane.submit(new(prefix + "l", b"x" * 3_000_000), same)
        while lane.num_waiting:
            assert lane.step()
        assert small.result(0).applied
        with pytest.raises(StoreError, match=r"too large|larger than max"):
            large.result(0)
        store.close()

    def test_an_outage_among_the_halves(self, memory: MemoryStore):
        """The second half must not overtake the first, which etcd did not answer: nothing is lost, and all in order."""
        lease = memory.lease(60)
        lease.revoke()
        store = FaultyStore(memory, [None, "applied", None, None, "away"])
        lane = Lane(store, "test")
        futures = [lane.submit(new(f"k{number}", lease=lease.id if number == 5 else 0), same) for number in range(8)]
        while lane.num_waiting:
            lane.step()
        with pytest.raises(LeaseLost):
            futures.pop(5).result(0)
        assert all(future.result(0).applied or future.result(0).unsure for future in futures)
        assert [kv.version for kv in memory.range("k").kvs] == [1] * 7


class TestTheEnd:
    def test_closing_commits_what_waits(self, memory: MemoryStore):
        store = GatedStore(memory)
        lane = Lane(store, "test", limits=Limits(num_writes=2))
        lane.start()
        futures = [lane.submit(new(f"k{number}"), same) for number in range(5)]
        assert store.asked.acquire(timeout=PATIENCE)
        closing = threading.Thread(target=lane.close)
        closing.start()
        store.gate.release(10)
        closing.join(PATIENCE)
        assert all(future.result(0).applied for future in futures)
        with pytest.raises(StoreError, match="new x: the lane 'test' is closed"):
            lane.submit(new("x"), same)
        lane.close()

    def test_closing_in_an_outage(self, memory: MemoryStore):
        """What cannot be made is said to its writer; what may have been made, too."""
        store = FaultyStore(memory, ["applied"] + ["away"] * 1000)
        lane = Lane(store, "test", limits=Limits(num_writes=1))
        sent = lane.submit(new("sent"), same)
        lane.step()
        not_sent = lane.submit(new("not sent"), same)
        lane.start()
        lane.close()
        with pytest.raises(OutcomeUnknown, match="its lane was closed"):
            sent.result(0)
        with pytest.raises(StoreUnavailable, match="its lane was closed before etcd took it"):
            not_sent.result(0)

    def test_a_lane_that_was_never_started(self, memory: MemoryStore):
        lane = Lane(memory, "test")
        future = lane.submit(new("a"), same)
        lane.close()
        with pytest.raises(StoreUnavailable):
            future.result(0)

    def test_a_fault_of_its_own(self, memory: MemoryStore, caplog):
        """Crash-only: whoever waits is told, nobody is kept waiting later, and the log has the traceback."""

        class Broken(FaultyStore):
            def txn(self, *args, **kwargs):
                raise ZeroDivisionError("a bug")

        lane = Lane(Broken(memory), "test")
        first, second = lane.submit(new("a"), same), lane.submit(new("a"), same)
        lane.start()
        with pytest.raises(StoreUnavailable, match="it was not made"):
            second.result(PATIENCE)
        with pytest.raises(OutcomeUnknown, match=r"its lane ended.*ZeroDivisionError"):
            first.result(PATIENCE)
        lane.close()
        with pytest.raises(StoreError, match=r"the lane 'test' is closed \(ZeroDivisionError"):
            lane.submit(new("b"), same)
        assert "ends by a fault of its own" in caplog.text

    def test_an_event_loop_that_is_closed(self, memory: MemoryStore, caplog):
        """Its futures are completed from the lane's own thread."""

        def closed(complete):
            raise RuntimeError("Event loop is closed")

        lane = Lane(memory, "test", deliver=closed)
        future = lane.submit(new("a"), same)
        lane.start()
        with pytest.raises(OutcomeUnknown, match="may or may not have been made"):
            future.result(PATIENCE)
        lane.close()
        assert memory.get("a") is not None
