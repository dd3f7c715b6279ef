"""The archivist, round by round, on the in-memory twin and on etcd: what is written, when it is forgotten, what it leaves."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from dtf_lightning.errors import SettingsError, WatchCompacted
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.lane import Lane
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.record.values import TaskOutcome, TaskSpecification, Tombstone
from dtf_lightning.farm.record.writes import Submission, Submit
from dtf_lightning.farm.results import archivist as archivist_module
from dtf_lightning.farm.results.archive import ArchiveUnavailable
from dtf_lightning.farm.results.archivist import DAY, ArchiveSettings, Archivist, Round
from dtf_lightning.farm.results.history import ArchivistThread
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tables import from_parquet
from dtf_lightning.farm.results.tail import Health, ResultsTail
from support.farm.results import ENVELOPE, MemoryArchive, SetClock, finish, shown


class Office:
    """One coordinator's archivist with all around it; every write to etcd is made at once."""

    def __init__(self, store: Store, keys: FarmKeys, archive: MemoryArchive, clock: SetClock, name: str = "c") -> None:
        self.store, self.keys, self.archive, self.clock = store, keys, archive, clock
        self.results = FarmResults()
        self.archivist = Archivist(
            self.results, archive, store, keys, self.write, settings=ArchiveSettings(), name=name,
            read_again=self.read_again, clock=clock,
        )  # fmt: skip
        self.tail = ResultsTail(self.results, store, keys, read_archive=self.archivist.read_archive, clock=clock)

    def write(self, write):
        lane = Lane(self.store, "test")
        future = lane.submit(write.guarded(self.keys), write.verdict)
        while lane.num_waiting:
            lane.step()
        return future

    def read_again(self) -> None:
        self.tail.read_again()

    def read(self) -> None:
        self.read_again()
        while self.tail.step():
            pass

    def round(self, *, after: float = 0.0) -> Round:
        self.clock.now += after
        return self.archivist.round()

    def at(self, kind: Kind) -> dict[str, object]:
        kvs = self.store.range(self.keys.folder(kind)).kvs
        return {self.keys.parse(kv.key)[1][0]: decode(kind, kv.value) for kv in kvs}

    def archived(self) -> list[str]:
        files = sorted(self.archive.files.items())
        return [task for name, data in files for task in from_parquet(data, name).column("task").to_pylist()]


@pytest.fixture
def office(store, farm):
    made = Office(store, FarmKeys(farm), MemoryArchive(), SetClock())
    yield made
    made.results.close()


def test_a_result_from_etcd_to_the_archive(office):
    """Written within a round, forgotten ten minutes after it was first seen: its id stays known, its result too."""
    task = new_task_id(office.clock.now)
    envelope = finish(office.store, office.keys, task, failures=2)
    office.read()
    assert (office.round().archived, office.archived()) == (1, [task])
    assert office.round(after=599).forgotten == 0
    assert office.at(Kind.DONE) == {task: envelope}
    done = office.round(after=2)
    assert (done.archived, done.forgotten) == (0, 1)
    assert office.at(Kind.DONE) == office.at(Kind.FAILED) == {}
    assert office.at(Kind.TOMBSTONE) == {
        task: Tombstone(outcome=TaskOutcome.COMPLETED, archived=office.clock.now),
    }
    assert office.write(Submit(task=task, specification=TaskSpecification(command=("x",)))).result().submission is (
        Submission.DONE
    )
    assert office.results.envelope(task) == envelope


def test_an_hour_later_and_days_later(office):
    """The id is known for as long as it may be submitted, then its tombstone goes; the result is answered for ever."""
    old, young = new_task_id(office.clock.now), new_task_id(office.clock.now + 3000)
    finish(office.store, office.keys, old)
    office.read()
    office.round()
    office.round(after=3600)
    assert office.at(Kind.TOMBSTONE).keys() == {old}
    finish(office.store, office.keys, young)
    office.read()
    office.round(after=2 * DAY)
    office.round(after=601)
    assert office.at(Kind.TOMBSTONE).keys() == {old, young}
    assert office.round(after=5 * DAY + 3600).tombstones == 0
    assert office.round(after=DAY).tombstones == 1
    assert office.at(Kind.TOMBSTONE).keys() == {young}
    assert office.round(after=3 * DAY).tombstones == 1
    assert office.at(Kind.TOMBSTONE) == {}
    assert office.results.envelope(old) == office.results.envelope(young) == ENVELOPE


def test_a_task_that_waited_for_longer_than_ids_are_kept(office):
    """Its id is old when it is archived; its tombstone stays as long as any other, for tasks that come after it."""
    task = new_task_id(office.clock.now - 30 * DAY)
    finish(office.store, office.keys, task)
    office.read()
    office.round()
    assert (office.round(after=601).forgotten, office.at(Kind.TOMBSTONE).keys()) == (1, {task})
    assert office.round(after=7 * DAY).tombstones == 0
    assert office.round(after=2 * DAY).tombstones == 1


def test_a_client_whose_clock_is_ahead(office):
    """The tombstone goes when it is old enough, though its id seems younger."""
    task = new_task_id(office.clock.now + 3500)
    finish(office.store, office.keys, task)
    office.read()
    office.round()
    assert office.round(after=601).forgotten == 1
    assert office.round(after=8 * DAY).tombstones == 0
    assert office.round(after=1100).tombstones == 1


def test_ids_must_not_outlive_their_tombstones():
    with pytest.raises(SettingsError, match=r"a task could be accepted twice\. Expected at least 612000 s"):
        ArchiveSettings(tombstones=7 * DAY)


def test_an_archive_that_takes_nothing(office):
    """Nothing is forgotten, however old; once it takes files all goes on."""
    finish(office.store, office.keys, "t")
    office.read()
    office.archive.full = True
    for _ in range(2):
        with pytest.raises(ArchiveUnavailable):
            office.round(after=3600)
    assert office.at(Kind.DONE).keys() == {"t"}
    office.archive.full = False
    assert office.round().forgotten == 1
    assert office.archived() == ["t"]


def test_an_archive_that_loses_a_file(office):
    """While etcd has the results they are written again before they are forgotten."""
    finish(office.store, office.keys, "t")
    office.read()
    office.round()
    office.archive.files.clear()
    done = office.round(after=3600)
    assert (done.archived, done.forgotten) == (1, 1)
    assert office.archived() == ["t"]


def test_a_damaged_file(office):
    """It is named, and holds up nothing; what etcd still has of it is written again."""
    finish(office.store, office.keys, "t")
    day = "2027-01-15"
    office.archive.files[f"{day}/a.parquet"] = b"PAR1 is not all"
    office.read()
    assert office.round().archived == 1
    assert list(office.archivist.damaged) == [f"{day}/a.parquet"]


def test_another_coordinator_goes_on(office):
    """What one has written, the next leader neither writes again nor forgets to forget, though it has only seen the watch.
    One that comes later knows all."""
    second = Office(office.store, office.keys, office.archive, office.clock, "d")
    for task in ("t", "u"):
        finish(office.store, office.keys, task)
        for one in (office, second):
            revision = office.store.get(office.keys.key(Kind.DONE, task)).mod_revision
            one.tail.take(shown(task, recorded=revision))
            one.tail.step()
        if task == "t":
            assert office.round().archived == 1
    assert second.round().archived == 1
    assert second.round(after=601).forgotten == 2
    assert second.archived() == ["t", "u"]
    third = Office(office.store, office.keys, office.archive, office.clock, "e")
    third.read()
    assert third.results.envelope("t") == third.results.envelope("u") == ENVELOPE
    for one in (second, third):
        one.results.close()


def test_a_file_that_comes_while_the_archive_is_listed(office, monkeypatch):
    """Another coordinator, deposed by now, writes it, and this one's tail takes it in: the list has it not, and it is not lost."""
    second = Office(office.store, office.keys, office.archive, office.clock, "d")
    finish(office.store, office.keys, "t")
    office.read()
    second.read()
    names = office.archive.names

    def list_before(since=""):
        listed = names(since)
        monkeypatch.undo()
        assert second.round().archived == 1
        office.read()
        return listed

    monkeypatch.setattr(office.archive, "names", list_before)
    assert office.round().archived == 0
    assert office.archived() == ["t"]
    assert office.round(after=601).forgotten == 1
    second.results.close()


def test_a_file_that_is_older_than_the_database(office):
    """A result waits in etcd for days, in a file of another day; a new coordinator that has seen only etcd finds the file."""
    task = new_task_id(office.clock.now)
    finish(office.store, office.keys, task)
    office.read()
    office.round()
    office.clock.now += 3 * DAY
    new = Office(office.store, office.keys, office.archive, office.clock, "d")
    new.tail.take(shown(task, recorded=office.store.get(office.keys.key(Kind.DONE, task)).mod_revision))
    new.tail.step()
    assert new.round().archived == 0
    assert new.round(after=601).forgotten == 1
    assert new.archived() == [task]
    new.results.close()


def test_a_database_that_is_behind_etcd(office):
    """Another one has forgotten the result, and its tombstone has gone too: etcd is read again, and the books agree."""
    finish(office.store, office.keys, "t")
    office.read()
    office.round()
    office.store.delete(office.keys.key(Kind.DONE, "t"))
    assert office.round(after=601).forgotten == 0
    while office.tail.step():
        pass
    assert office.results.counts() == {"results": 1, "kept_in_etcd": 0, "not_in_archive": 0}


def test_many_results_in_several_files(office, monkeypatch):
    monkeypatch.setattr(archivist_module, "FILE_ROWS", 10)
    monkeypatch.setattr(archivist_module, "CHUNK", 7)
    tasks = [f"{number:02}" for number in range(25)]
    for task in tasks:
        finish(office.store, office.keys, task)
    office.read()
    done = office.round()
    assert (done.files, done.archived, sorted(office.archived())) == (3, 25, tasks)
    assert office.round(after=601).forgotten == 25
    assert office.at(Kind.DONE) == {}
    assert office.at(Kind.TOMBSTONE).keys() == set(tasks)


def test_a_key_goes_after_its_task(office):
    """A task that waits, or is known by its tombstone, keeps its key, however old it is."""
    now = office.clock.now
    waiting, old, young = (new_task_id(now - days * DAY) for days in (30, 20, 1))
    for task in (waiting, old, young):
        specification = TaskSpecification(command=("x",), key=f"key/{task}")
        assert office.write(Submit(task=task, specification=specification)).result().submission is Submission.NEW
    for task in (old, young):
        office.store.delete(office.keys.key(Kind.TASK, task))
        finish(office.store, office.keys, task)
    office.read()
    office.round()
    assert office.round(after=3600).keys == 0
    assert office.at(Kind.TOMBSTONE).keys() == {old, young}
    done = office.round(after=8 * DAY + 3600)
    assert (done.tombstones, done.keys) == (2, 2)
    assert office.at(Kind.KEY).keys() == {f"key/{waiting}"}
    again = Submit(
        task=new_task_id(office.clock.now), specification=TaskSpecification(command=("x",), key=f"key/{old}")
    )
    assert office.write(again).result().submission is Submission.NEW


class TestCompaction:
    def test_up_to_where_it_was_a_round_ago(self, office):
        """Whoever has read the record since the last round can still watch from there."""
        finish(office.store, office.keys, "t")
        office.read()
        before = office.store.range(office.keys.leader).revision
        assert office.round().compacted == 0
        since = office.store.put(office.keys.key(Kind.PLAN, "p"), b"x")
        assert office.round().compacted == before
        with pytest.raises(WatchCompacted):
            office.store.watch(office.keys.prefix, start_revision=1).get(timeout=5)
        watch = office.store.watch(office.keys.prefix, start_revision=since)
        assert [event.kv.mod_revision for event in watch.get(timeout=5)] == [since]
        watch.cancel()

    def test_never_at_the_latest_revision(self, office):
        """Though nothing is written any more."""
        office.store.put(office.keys.key(Kind.PLAN, "p"), b"x")
        last = office.store.put(office.keys.key(Kind.PLAN, "p"), b"y")
        assert [office.round().compacted for _ in range(3)] == [0, last - 1, 0]
        (kv,) = office.store.range(office.keys.folder(Kind.PLAN), revision=last).kvs
        assert kv.value == b"y"


class TestItsThread:
    def make(self, act):
        clock = SetClock()
        thread = ArchivistThread(SimpleNamespace(round=act, damaged={}), 0.0, clock)
        thread.start()
        return thread

    def test_only_the_leader_archives(self):
        done = threading.Event()
        thread = self.make(lambda: done.set() or Round(archived=3))
        assert thread.status()["reason"] == "another coordinator archives"
        assert not done.wait(0.01)
        thread.lead(True)
        assert done.wait(10)
        thread.close()
        assert thread.status()["archived"] == 3
        assert thread.status()["health"] is Health.HEALTHY

    def test_rounds_that_fail_and_a_death_show(self):
        told = []

        def fail():
            told.append(1)
            if len(told) > 10:
                raise AssertionError("a bug (injected)")
            raise ArchiveUnavailable("no space (injected)")

        thread = self.make(fail)
        assert thread.status()["health"] is Health.HEALTHY
        thread.lead(True)
        thread._thread.join(10)
        status = thread.status()
        assert status["health"] is Health.CRITICAL
        assert status["reason"] == "nothing is archived any more: AssertionError: a bug (injected)"
        thread.close()


def test_a_tombstone_of_a_newer_release_stays(office):
    key = office.keys.key(Kind.TOMBSTONE, new_task_id(office.clock.now - 100 * DAY))
    office.store.put(key, b'{"v":99}')
    assert office.round().tombstones == 0
    assert office.store.get(key) is not None
