"""A farm is backed up while it works, and comes back into an etcd that has nothing of it."""

from __future__ import annotations

import contextlib
import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Put
from dtf_lightning.farm.backup.backup_file import BackupDamaged, BackupFailed
from dtf_lightning.farm.backup.making import make_backup
from dtf_lightning.farm.backup.places import FarmPlaces
from dtf_lightning.farm.backup.restoring import restore_backup
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.record.values import Attempt, CoordinatorRecord, Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.results.archive import LocalArchive
from dtf_lightning.farm.results.rows import SeenResult
from dtf_lightning.farm.results.tables import result_table, to_parquet
from dtf_lightning.farm.tokens import make_token, read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

KEYS = FarmKeys("f")
NOW = 1_800_000_000.0


def places(folder, **fields):
    return FarmPlaces(
        **{"farm": "f", "folder": folder / "files", "archive": str(folder / "files" / "archive")}
        | {"token_file": folder / "token"}
        | fields
    )


def archive_file(*results):
    table = result_table(results)
    return to_parquet(table.append_column("failed_attempts", [[[] for _ in results]]))


ROWS = archive_file()


@pytest.fixture
def store():
    with MemoryStore() as store:
        yield store


@pytest.fixture
def empty():
    """Another etcd."""
    with MemoryStore() as store:
        yield store


@pytest.fixture
def backup(store, tmp_path):
    """Of a small farm, one of whose tasks runs."""
    make_token(tmp_path / "token")
    for name, attempt in (("a", None), ("b", Attempt(number=2, workers=("w",), epoch=3))):
        store.put(KEYS.key(Kind.TASK, name), encode(TaskSpecification(command=("true",))))
        if attempt is not None:
            store.put(KEYS.key(Kind.ATTEMPT, name), encode(attempt))
    LocalArchive(tmp_path / "files" / "archive").write("2027-01-01/20270101T000000.0-c-1.parquet", ROWS)
    path = tmp_path / "b"
    make_backup(store, places(tmp_path), path, now=NOW)
    return path


def test_it_comes_back(backup, empty, tmp_path):
    there = tmp_path / "there"
    done = restore_backup(empty, places(there), backup, now=NOW)
    assert (done.returning.waiting, done.returning.again, done.files) == (2, ("b",), 1)
    assert read_token(there / "token") == read_token(tmp_path / "token")
    assert (there / "token").stat().st_mode & 0o777 == 0o600
    assert LocalArchive(there / "files" / "archive").read("2027-01-01/20270101T000000.0-c-1.parquet") == ROWS
    kept = {kv.key: kv.value for kv in empty.range(KEYS.prefix).kvs}
    assert kept.keys() == {KEYS.key(Kind.TASK, "a"), KEYS.key(Kind.TASK, "b"), KEYS.key(Kind.ATTEMPT, "b")}
    assert decode(Kind.ATTEMPT, kept[KEYS.key(Kind.ATTEMPT, "b")]) == Attempt(number=2)


def test_under_another_name(backup, empty, tmp_path):
    restore_backup(empty, places(tmp_path / "there", farm="g"), backup, now=NOW)
    assert empty.count(FarmKeys("g").folder(Kind.TASK)) == 2
    assert empty.count(KEYS.prefix) == 0


def refused(store, folder, path, match):
    before = {kv.key: kv.value for kv in store.range("").kvs}
    with pytest.raises((BackupFailed, BackupDamaged), match=match):
        restore_backup(store, places(folder), path, now=NOW)
    assert {kv.key: kv.value for kv in store.range("").kvs} == before


def test_a_farm_that_is_not_empty(backup, store, tmp_path):
    refused(store, tmp_path, backup, "etcd has 3 keys of a farm 'f'")


def test_coordinators_that_live(backup, empty, tmp_path):
    empty.put(KEYS.key(Kind.COORDINATOR, "c7"), encode(CoordinatorRecord(address="http://c", version="0")))
    refused(empty, tmp_path / "there", backup, r"coordinators of the farm 'f' are there \(c7\): stop them all")


def test_another_token(backup, empty, tmp_path):
    make_token(tmp_path / "other")
    with pytest.raises(BackupFailed, match="another token than the backup"):
        restore_backup(empty, places(tmp_path, token_file=tmp_path / "other"), backup, now=NOW)


def test_databases_of_before(backup, empty, tmp_path):
    (tmp_path / "files" / "results-c0.duckdb").touch()
    refused(empty, tmp_path, backup, "rm .*/files/results-c0.duckdb`")
    (tmp_path / "elsewhere.duckdb").touch()
    with pytest.raises(BackupFailed, match=r"elsewhere\.duckdb"):
        restore_backup(empty, places(tmp_path / "there", database=tmp_path / "elsewhere.duckdb"), backup, now=NOW)


def test_an_archive_that_differs(backup, empty, tmp_path):
    LocalArchive(tmp_path / "files" / "archive").write("2027-01-01/20270101T000000.0-c-1.parquet", b"else")
    refused(empty, tmp_path, backup, "another content than the backup")


def test_a_damaged_file_changes_nothing(backup, empty, tmp_path):
    backup.write_bytes(backup.read_bytes()[:-200])
    refused(empty, tmp_path / "there", backup, "its end is missing")
    assert not (tmp_path / "there").exists()


def test_no_such_farm(store, tmp_path):
    with pytest.raises(BackupFailed, match="nothing of a farm named 'f'"):
        make_backup(store, places(tmp_path), tmp_path / "b", now=NOW)
    assert not (tmp_path / "b").exists()


def test_results_that_came_after_the_record_was_read(store, empty, tmp_path):
    """The archive is newer than the record: a task that it has is not run again, and what comes after it is not held up."""
    make_token(tmp_path / "token")
    task = new_task_id(NOW, 1)
    store.put(KEYS.key(Kind.TASK, task), encode(TaskSpecification(command=("true",))))
    ended = Envelope(outcome=TaskOutcome.FAILED, attempt=1, revision=3, reason="exit code 1")
    data = archive_file(SeenResult(task=task, envelope=ended, recorded=4, seen=NOW))
    archive = LocalArchive(tmp_path / "files" / "archive")
    archive.write("2027-01-15/20270115T090000.0-c-1.parquet", data)
    archive.write("2027-01-15/20270115T090000.0-c-2.parquet", data[:50])
    make_backup(store, places(tmp_path), tmp_path / "b", now=NOW)
    done = restore_backup(empty, places(tmp_path / "there"), tmp_path / "b", now=NOW)
    assert done.returning.ended_since == (task,)
    (damaged,) = done.damaged
    assert damaged.startswith("2027-01-15/20270115T090000.0-c-2.parquet cannot be read")
    (left,) = empty.range(KEYS.prefix).kvs
    assert left.key == KEYS.key(Kind.TOMBSTONE, task)


class Killed(Exception):
    """The process was killed."""


class DyingStore:
    """Dies at its n-th transaction."""

    def __init__(self, inner, after):
        self._inner, self._left = inner, after

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def txn(self, *arguments, **fields):
        self._left -= 1
        if self._left < 0:
            raise Killed
        return self._inner.txn(*arguments, **fields)


@pytest.mark.parametrize("after", [1, 2])
def test_a_restore_that_was_killed(backup, empty, tmp_path, after):
    """No coordinator starts, no other backup goes in, none is made; the same command brings all of it."""
    there = tmp_path / "there"
    with pytest.raises(Killed):
        restore_backup(DyingStore(empty, after), places(there), backup, now=NOW)
    with pytest.raises(SettingsError, match="its restore did not end"):
        CoordinatorInThread(empty, there)
    with pytest.raises(BackupFailed, match="is being restored"):
        make_backup(empty, places(there), tmp_path / "c", now=NOW)
    other = MemoryStore()
    other.put(KEYS.key(Kind.TASK, "z"), encode(TaskSpecification(command=("true",))))
    make_backup(other, places(tmp_path), tmp_path / "c", now=NOW)
    other.close()
    refused(empty, there, tmp_path / "c", "another backup is being restored")
    restore_backup(empty, places(there), backup, now=NOW)
    assert empty.count(KEYS.prefix) == 3


def test_a_coordinator_that_starts_meanwhile(backup, empty, tmp_path):
    """As one that had looked before the restore began: nothing says that it is whole."""

    class Late(DyingStore):
        def txn(self, compares, then, *more, **fields):
            if any(isinstance(one, Put) and "/tasks/" in one.key for one in then):
                self._inner.put(KEYS.leader, b"{}")
            return self._inner.txn(compares, then, *more, **fields)

    with pytest.raises(BackupFailed, match="somebody else has written"):
        restore_backup(Late(empty, 9), places(tmp_path / "there"), backup, now=NOW)
    assert empty.get(KEYS.restoring) is not None


@contextlib.contextmanager
def farm_on(endpoint, folder):
    with connect(endpoint, quiet=True) as store:
        coordinator = CoordinatorInThread(store, folder)
        try:
            yield coordinator
        finally:
            coordinator.stop()


@pytest.mark.process
def test_a_whole_farm_into_an_empty_etcd(tmp_path, capsys):
    """Commands as in docs/deploy.md. One task has ended, one runs, one waits for it; a developer has a token."""
    here, there, file = tmp_path / "here", tmp_path / "there", tmp_path / "farm.dtf-backup"
    here.mkdir()
    there.mkdir()

    def dtf(command, endpoint, folder):
        words = [f"--endpoint={endpoint}", f"--folder={folder / 'files'}", f"--token-file={folder / 'token'}"]
        code = main(["farm", command, str(file), "--farm-name", "f", *words, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else err

    with EmbeddedEtcd() as etcd, farm_on(etcd.endpoint, here) as coordinator, coordinator.client() as client:
        own = read_token(here / "token")
        worker = PlayedWorker((coordinator.url,), own, cpu=1.0)
        with contextlib.closing(worker):
            worker.wait_until_welcome()
            ended = client.submit(["true"], name="ended")
            worker.end(worker.next(), metrics={"loss": 0.5})
            client.wait(ended, DEADLINE)
            runs = client.submit(["true"], name="runs")
            order = worker.next()
            waits = client.submit(["true"], name="waits", after=[runs])
            made = client.connection.ask("POST", "/api/tokens", {"role": "developer", "subject": "ann"})["token"]
            code, told = dtf("backup", etcd.endpoint, here)
            assert (code, told["tasks"]) == (0, 2)
            # While its coordinator lives, nothing is restored over it.
            assert "coordinators of the farm 'f' are there (c0)" in dtf("restore", etcd.endpoint, there)[1]
            # What comes after the backup is lost with etcd.
            worker.end(order)
            client.wait(runs, DEADLINE)

    with EmbeddedEtcd() as etcd:
        code, told = dtf("restore", etcd.endpoint, there)
        assert (code, told["open"], told["again"]) == (0, 2, [runs])
        with farm_on(etcd.endpoint, there) as coordinator, coordinator.client() as client:
            assert client.task(ended).raw["results"]["metrics"]["loss"] == 0.5
            assert [row["task_id"] for row in client.results()] == [ended]
            with contextlib.closing(Connection((coordinator.url,), made)) as signed_in:
                assert signed_in.ask("GET", "/api/status")["tasks"] == {"pending": 1, "waiting": 1}
            worker = PlayedWorker((coordinator.url,), own, session="second", cpu=1.0)
            with contextlib.closing(worker):
                order = worker.next()
                assert (order.task, order.number) == (runs, 2)  # the first ran when the backup was made
                worker.end(order)
                order = worker.next()
                assert (order.task, order.number) == (waits, 1)
                worker.end(order)
                assert client.wait(waits, DEADLINE).status == "completed"
            assert dtf("backup", etcd.endpoint, there)[0] == 0
