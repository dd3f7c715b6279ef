"""The tail: what it is told of is written, in order and once; what is wrong shows."""

from __future__ import annotations

import threading

import pytest

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.results import tail as tail_module
from dtf_lightning.farm.results.store import FarmResults, Wanted
from dtf_lightning.farm.results.tail import Health, ResultsTail
from support.farm.results import ENVELOPE, SetClock, finish, gone, shown, shown_failure

KEYS = FarmKeys("lab")


class Gated(FarmResults):
    """Its writes wait for a word, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.faults: list[BaseException] = []
        self.batches: list[int] = []

    def take_in(self, results, failures=(), forgotten=()):
        self.asked.set()
        assert self.gate.wait(60)
        if self.faults:
            raise self.faults.pop(0)
        self.batches.append(len(results) + len(failures) + len(forgotten))
        super().take_in(results, failures, forgotten)


@pytest.fixture
def results():
    made = Gated()
    yield made
    made.close()


@pytest.fixture
def store():
    with MemoryStore() as made:
        yield made


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def tail(results, store, clock):
    made = ResultsTail(results, store, KEYS, clock=clock)
    yield made
    made.close()


def tasks(results) -> list[str]:
    return [row["task"] for row in results.page(Wanted(), limit=1000)]


def test_what_the_watch_shows_is_written(tail, results):
    """Results and failed attempts in one batch; other kinds are nothing to it."""
    for change in (shown_failure("a"), shown("a"), shown("b"), gone("b"), Change(Kind.TASK, ("c",), None, None, 9)):
        tail.take(change)
    assert tail.step()
    assert not tail.step()
    assert results.batches == [4]
    assert tasks(results) == ["b", "a"]
    assert len(results.page(Wanted(task="a"), limit=1)[0]["failed_attempts"]) == 1
    assert results.counts() == {"results": 2, "kept_in_etcd": 1, "not_in_archive": 1}


def test_a_start_reads_what_was_done_before(tail, results, store):
    """Then the archive, which has what etcd had forgotten by then."""
    finish(store, KEYS, "a", failures=2)
    finish(store, KEYS, "b")
    order = []
    tail._read_archive = lambda: order.append(tasks(results))
    tail.read_again()
    assert tail.step()
    assert tasks(results) == ["b", "a"]
    assert order == [["b", "a"]]
    assert [row["failed_attempts"] for row in results.page(Wanted(), limit=5)][1] != []
    assert tail.status().readings == 1


def test_a_reading_comes_after_what_was_told_before_it(tail, results, store):
    """The watch showed a result, lost its place, and missed that etcd forgot it."""
    tail.take(shown("old"))
    tail.read_again()
    tail.take(shown("new"))
    steps = 0
    while tail.step():
        steps += 1
    assert steps == 3
    assert tasks(results) == ["old", "new"]
    assert results.unarchived(5).column("task").to_pylist() == ["new"]


def test_a_value_that_this_release_cannot_read(tail, results, store):
    """It stays in etcd, is counted, and holds up nothing."""
    finish(store, KEYS, "a")
    store.put(KEYS.key(Kind.DONE, "b"), b'{"v":99}')
    store.put(KEYS.key(Kind.FAILED, "b", "first"), b'{"v":1,"revision":1,"workers":[],"reason":"","ended":1.0}')
    tail.read_again()
    tail.step()
    assert tasks(results) == ["a"]
    assert tail.status().unreadable == 1


def test_too_many_changes_are_read_from_etcd_instead(tail, results, store, monkeypatch):
    monkeypatch.setattr(tail_module, "MAX_WAITING", 3)
    for task in "abcde":
        finish(store, KEYS, task)
        tail.take(shown(task))
    assert tail.status().waiting < 4
    while tail.step():
        pass
    assert tasks(results) == ["e", "d", "c", "b", "a"]
    assert tail.status().readings == 1


class TestItsThread:
    def test_batches_from_a_thread_of_its_own(self, tail, results):
        """Nobody who tells it waits; what comes while a batch is written is the next one."""
        results.gate.clear()
        tail.start()
        for number in range(50):
            tail.take(shown(f"{number:02}"))
        assert not tail.catch_up(0.01)
        results.gate.set()
        assert tail.catch_up(60)
        assert sum(results.batches) == 50
        assert len(results.batches) <= 3
        assert len(tasks(results)) == 50
        status = tail.status()
        assert (status.health, status.waiting, status.written) == (Health.HEALTHY, 0, 50)

    def test_a_fault_that_passes(self, tail, results, monkeypatch):
        """The batch is kept and written later; meanwhile it shows."""
        monkeypatch.setattr(tail_module, "PAUSE", 0.01)
        results.gate.clear()
        results.faults = [StoreUnavailable("etcd is away (injected)"), OSError(28, "No space left on device")]
        told = threading.Event()
        write = results.take_in

        def fail_first(*arguments):
            try:
                write(*arguments)
            except OSError:
                told.set()
                results.gate.clear()
                raise

        monkeypatch.setattr(results, "take_in", fail_first)
        tail.start()
        tail.take(shown("a"))
        results.gate.set()
        assert told.wait(60)
        tail_status = tail.status()
        assert tail_status.health is Health.CRITICAL
        assert "results wait to be written: " in tail_status.reason
        results.gate.set()
        assert tail.catch_up(60)
        assert tail.status().health is Health.HEALTHY
        assert results.envelope("a") == ENVELOPE

    def test_its_death_shows(self, tail, results):
        """A fault of this program ends it, and is told for ever; nobody is held up by it, nor its memory filled."""
        results.faults = [AssertionError("a bug (injected)")]
        tail.take(shown("a"))
        tail.read_again()
        tail.start()
        assert not tail.catch_up(60)
        tail.take(shown("b"))
        status = tail.status()
        assert status.health is Health.CRITICAL
        assert status.reason == "no result is written any more: AssertionError: a bug (injected)"
        assert status.waiting == 1

    def test_one_that_is_stuck(self, tail, results, clock):
        """Nothing fails, and nothing is written."""
        results.gate.clear()
        tail.start()
        tail.take(shown("a"))
        assert results.asked.wait(60)
        clock.now += 11
        status = tail.status()
        assert status.health is Health.WARNING
        assert status.reason == "1 changes wait, and nothing was written for 11 s"
        results.gate.set()

    def test_an_end_writes_what_waits(self, tail, results):
        results.gate.clear()
        tail.start()
        for task in "abc":
            tail.take(shown(task))
        tail.read_again()
        results.gate.set()
        tail.close()
        assert tasks(results) == ["c", "b", "a"]
        assert tail.status().health is Health.HEALTHY
