"""Outcomes on disk until they are recorded."""

from __future__ import annotations

import errno

import pytest

from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.worker.folders import AttemptFolder, WorkerFolders
from dtf_lightning.farm.worker.logs import KeptLogs
from dtf_lightning.farm.worker.spool import BALLAST, Spool
from dtf_lightning.whole_files import write_durably

OUTCOME = AttemptOutcome(
    kind=OutcomeKind.FAILED, reason="exit code 3", exit_code=3, started=1.0, ended=2.5, metrics={"loss": 0.5},
    counts={"tests": 2}, artifacts={"a": "/w/a"}, tail="höre\n",
)  # fmt: skip


def attempt(folder, task="t", revision=1, log=b"hello\n") -> AttemptFolder:
    it = WorkerFolders(folder).attempt(task, revision)
    it.make()
    it.order.write_text("{}")
    it.log.write_bytes(log)
    (it.work / "file").write_text("x")
    return it


def test_it_survives_a_restart(tmp_path):
    """Each as it was, the oldest first; once, also if it is kept twice."""
    spool = Spool(tmp_path)
    for task, revision in (("b", 3), ("a/../x", 2), ("b", 4)):
        spool.keep(1, task, revision, OUTCOME)
        spool.keep(9, task, revision, AttemptOutcome(kind=OutcomeKind.LOST))
    kept = Spool(tmp_path).kept()
    assert [(it.number, it.task, it.revision) for it in kept] == [(1, "b", 3), (1, "a/../x", 2), (1, "b", 4)]
    assert all(it.outcome == OUTCOME for it in kept)


def test_forget(tmp_path):
    spool, folder = Spool(tmp_path), attempt(tmp_path, log=b"")
    spool.keep(1, "t", 1, OUTCOME)
    for _ in range(2):
        spool.forget("t", 1)
    assert spool.kept() == []
    assert not folder.path.exists()
    spool.forget("never", 5)


def test_a_log_stays_until_it_is_stored(tmp_path):
    """A part of it is stored when its attempt is forgotten."""
    spool, logs, folder = Spool(tmp_path), KeptLogs(tmp_path), attempt(tmp_path, log=b"0123456789")
    assert list(logs.waiting()) == [("t", 1, 0, 10)]
    logs.stored("t", 1, 4)
    spool.forget("t", 1)
    assert not folder.work.exists()
    assert list(logs.waiting()) == [("t", 1, 4, 10)]
    assert logs.read("t", 1, 4, 3) == b"456"
    logs.stored("t", 1, 2)  # late news change nothing
    assert list(logs.waiting()) == [("t", 1, 4, 10)]
    logs.stored("t", 1, 10)
    assert not folder.path.exists()
    assert logs.read("t", 1, 4) == b""
    logs.stored("t", 1, 10)


def test_a_log_that_nobody_stores(tmp_path):
    """It stays for a while, and only if its attempt was recorded it goes then."""
    spool, logs = Spool(tmp_path), KeptLogs(tmp_path)
    recorded, waiting = attempt(tmp_path), attempt(tmp_path, "u")
    spool.forget("t", 1)
    since = (recorded.path / "forgotten").stat().st_mtime
    logs.drop(60.0, since + 59.0)
    assert logs.read("t", 1, 0) == b"hello\n"
    logs.drop(60.0, since + 61.0)
    assert not recorded.path.exists()
    assert waiting.path.exists()


def test_locked_folders_go_too(tmp_path):
    """A task has taken away all permissions."""
    spool, folder = Spool(tmp_path), attempt(tmp_path, log=b"")
    (folder.work / "file").chmod(0)
    folder.work.chmod(0)
    spool.forget("t", 1)
    assert list((tmp_path / "attempts").iterdir()) == []


def test_a_full_disk(tmp_path):
    """The ballast makes room, and is loaded again when there is some."""
    ballast = tmp_path / "ballast"

    def write(path, data):
        if ballast.exists():
            raise OSError(errno.ENOSPC, "no space left on device")
        write_durably(path, data)

    spool = Spool(tmp_path, write=write)
    assert ballast.stat().st_size == BALLAST
    spool.keep(1, "t", 1, OUTCOME)
    assert [it.outcome for it in spool.kept()] == [OUTCOME]
    assert not ballast.exists()
    spool.forget("t", 1)
    assert ballast.exists()


def test_a_broken_disk(tmp_path):
    """Whoever keeps hears of it, and nobody has been told of the outcome."""

    def write(path, data):
        raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"):
        Spool(tmp_path, write=write).keep(1, "t", 1, OUTCOME)
    assert Spool(tmp_path).kept() == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: bytes(len(data)),
        lambda data: b"[]",
        lambda data: b'{"number": 1, "task": "t", "revision": 1, "outcome": {}}',
        lambda data: data.replace(b"failed", b"fai\xffed"),
    ],
)
def test_a_damaged_file_is_put_aside(tmp_path, damage):
    """It is told in the log, and the others are there."""
    spool = Spool(tmp_path)
    spool.keep(1, "t", 1, OUTCOME)
    spool.keep(1, "t", 2, OUTCOME)
    path = tmp_path / "spool" / "t.1.json"
    path.write_bytes(damage(path.read_bytes()))
    assert [it.revision for it in spool.kept()] == [2]
    assert [it.revision for it in spool.kept()] == [2]


def test_a_write_leaves_all_or_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    write_durably(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_durably(tmp_path / "folder", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("task", ["plain", "a/b", "..", "with.dots.1", "häßlich %2F"])
def test_names_of_folders(tmp_path, task):
    """Whatever a task is called, its folder lies in the worker's, and tells the task."""
    folder = attempt(tmp_path, task, 7)
    assert folder.path.parent == tmp_path / "attempts"
    assert [(it.task, it.revision) for it in WorkerFolders(tmp_path).all_attempts()] == [(task, 7)]


def test_leftovers_go(tmp_path):
    """Of an attempt that was being removed, and of one that was being made, when the worker was killed."""
    folders = WorkerFolders(tmp_path)
    folders.attempt("unborn", 1).path.mkdir()
    (folders.attempts / ".trash-1").mkdir()
    assert list(folders.all_attempts()) == []
    folders.remove_leftovers()
    assert list(folders.attempts.iterdir()) == []
