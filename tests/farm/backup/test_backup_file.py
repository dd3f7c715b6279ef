"""A backup's file: whole or not there, and any change of it is found."""

from __future__ import annotations

import errno
import hashlib
import json
import zipfile

import pytest

from dtf_lightning.farm.backup import backup_file
from dtf_lightning.farm.backup.backup_file import (
    BackupDamaged,
    BackupFailed,
    BackupFile,
    Manifest,
    record_lines,
    write_backup,
)
from dtf_lightning.farm.backup.places import file_name, superfluous
from dtf_lightning.farm.backup.returning import Entry

RECORD = [Entry(key=f"tasks/{number}", value=b'{"v":1}') for number in range(1200)]
RECORD += [Entry(key="tasks/strange", value=b'\xff\x00{"a": NaN}\n"')]


def manifest():
    return Manifest(id="1", farm="f", version="0", made=1.0, revision=5, tasks=2)


def write(path, **more):
    parts = {"record.jsonl": list(record_lines(RECORD)), f"sources/{'a' * 64}": b"x" * 5000, "token": b"secret\n"}
    return write_backup(path, manifest(), (parts | more).items())


def test_there_and_back(tmp_path):
    write(tmp_path / "b")
    with BackupFile(tmp_path / "b") as backup:
        backup.verify()
        assert backup.record() == RECORD
        assert backup.read("token") == b"secret\n"
        assert (backup.manifest.farm, backup.manifest.revision) == ("f", 5)
        assert backup.names("sources/") == [f"sources/{'a' * 64}"]


def test_its_owners_alone(tmp_path):
    write(tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "b"
    path.write_bytes(b"the old one")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup_file, "_add", full)
    with pytest.raises(BackupFailed, match="the disk is full"):
        write(path)
    assert [one.name for one in tmp_path.iterdir()] == ["b"]
    assert path.read_bytes() == b"the old one"


def test_what_cannot_be_read_leaves_the_old_one(tmp_path):
    def broken():
        raise BackupDamaged("the archive does not give it")

    (tmp_path / "b").write_bytes(b"the old one")
    with pytest.raises(BackupDamaged):
        write(tmp_path / "b", **{"archive/2026-01-01/x.parquet": broken})
    assert [(one.name, one.read_bytes()) for one in tmp_path.iterdir()] == [("b", b"the old one")]


def found(path):
    """What is said of a file that is looked at as `restore` does."""
    with BackupFile(path) as backup:
        backup.verify()


@pytest.mark.parametrize("content", [b"", b"PK", b"no backup at all\n" * 100])
def test_another_file(tmp_path, content):
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(BackupDamaged, match="it is none, or its end is missing"):
        found(tmp_path / "b")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(BackupDamaged, match="No such file"):
        found(tmp_path / "b")
    with pytest.raises(BackupDamaged, match="Is a directory"):
        found(tmp_path)


def test_an_ordinary_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "b", "w") as file:
        file.writestr("a", "b")
    with pytest.raises(BackupDamaged, match="is not in it"):
        found(tmp_path / "b")


def test_a_file_that_was_cut_off(tmp_path):
    write(tmp_path / "b")
    whole = (tmp_path / "b").read_bytes()
    for length in range(0, len(whole), 199):
        (tmp_path / "b").write_bytes(whole[:length])
        with pytest.raises(BackupDamaged):
            found(tmp_path / "b")


def test_a_byte_that_was_changed(tmp_path):
    """Either it is found, or it was one that means nothing here, such as the time of a part: what is read is as it was written."""
    path = tmp_path / "b"
    write(path)
    whole = path.read_bytes()
    num_found = 0
    for place in range(0, len(whole), 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        try:
            with BackupFile(path) as backup:
                backup.verify()
                assert (backup.record(), backup.read("token")) == (RECORD, b"secret\n")
        except BackupDamaged:
            num_found += 1
    assert num_found > len(whole) / 97 * 0.9


def rewritten(path, change):
    """As somebody writes it who knows the format, but for the digests."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    told = json.loads(parts["manifest.json"])
    change(parts, told)
    parts["manifest.json"] = json.dumps(told).encode()
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
        file.comment = hashlib.sha256(parts["manifest.json"]).hexdigest().encode()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda parts, told: parts.update(token=b"another\n"), "token has 8 bytes"),
        (lambda parts, told: parts.pop("token"), "it has other parts than it says"),
        (lambda parts, told: parts.update(more=b""), "it has other parts than it says"),
        (lambda parts, told: told["parts"].update({"../../evil": {"size": 0, "sha256": ""}}), "a part with the name"),
        (lambda parts, told: told["parts"].update({"archive/../x.parquet": {"size": 0, "sha256": ""}}), "the name"),
        (lambda parts, told: told.pop("farm"), "manifest.json is not one"),
        (lambda parts, told: told.update(format=99), "reads up to 1"),
    ],
)
def test_what_does_not_fit(tmp_path, change, told):
    write(tmp_path / "b")
    rewritten(tmp_path / "b", change)
    with pytest.raises(BackupDamaged, match=told):
        found(tmp_path / "b")


def test_the_newest_are_kept():
    """Of this farm, by the time in the name; what else lies there stays."""
    names = [file_name("lab", 1e9 + day * 86400) for day in range(5)]
    others = [file_name("lab2", 1e9), "lab-notes.txt", "lab-20010909T014640Z.dtf-backup.part"]
    assert superfluous([*others, *names], "lab", 2) == names[2::-1]
    assert superfluous(names, "lab", 9) == []
