"""The archive's files, in a local folder and behind a URL: one suite for both."""

from __future__ import annotations

import itertools
import os
import random

import pytest

from dtf_lightning.farm.record.task_id import new_task_id, time_of
from dtf_lightning.farm.results.archive import ArchiveUnavailable, new_name, open_archive
from dtf_lightning.farm.results.tombstones import STEP, prefixes_before

NEW_YEAR = 1_798_761_600.0
"""2027-01-01T00:00:00Z."""


@pytest.fixture(params=["local", "file URL", "remote"])
def archive(request, tmp_path):
    numbers = itertools.count()
    return open_archive({
        "local": str(tmp_path / "farm" / "archive"),
        "file URL": f"file://{tmp_path}/archive",
        "remote": f"memory://{tmp_path.name}{next(numbers)}/archive",
    }[request.param])  # fmt: skip


def test_what_is_written_is_read_and_listed(archive):
    assert archive.names() == []
    names = [new_name(NEW_YEAR + hours * 3600, "c/1") for hours in (-1, 1, 25)]
    for name in names:
        archive.write(name, name.encode() * 1000)
    assert archive.names() == names
    assert archive.names(since="2027-01-01") == names[1:]
    assert archive.names(since=names[2]) == names[2:]
    assert [archive.read(name) for name in names] == [name.encode() * 1000 for name in names]


def test_a_file_that_is_not_there(archive):
    with pytest.raises(ArchiveUnavailable, match=r"does not give 2027-01-01/x\.parquet"):
        archive.read("2027-01-01/x.parquet")


def test_a_folder_that_takes_nothing(tmp_path):
    """A file lies where a folder was to be: nothing is left behind, and what was tried is told."""
    (tmp_path / "archive").write_text("in the way")
    archive = open_archive(str(tmp_path / "archive"))
    with pytest.raises(ArchiveUnavailable, match=r"does not take 2027-01-01/x\.parquet: "):
        archive.write("2027-01-01/x.parquet", b"x")
    with pytest.raises(ArchiveUnavailable, match="cannot be listed"):
        archive.names()


def test_half_a_file_of_a_coordinator_that_was_killed(tmp_path):
    """It goes with a later write, once it is too old for anybody to be at it still."""
    archive = open_archive(str(tmp_path))
    archive.write("2027-01-01/a.parquet", b"a")
    old, new = (tmp_path / "2027-01-01" / f".{name}.parquet.1.beside" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    archive.write("2027-01-02/b.parquet", b"b")
    assert (old.exists(), new.exists()) == (False, True)


def test_other_files_are_left_alone(tmp_path):
    """Half a file of a coordinator that died, and what people put beside."""
    archive = open_archive(str(tmp_path))
    archive.write("2027-01-01/a.parquet", b"a")
    (tmp_path / "README").write_text("hello")
    (tmp_path / "2027-01-01" / ".b.parquet.tmp").write_bytes(b"half")
    (tmp_path / "2027-01-01" / "notes.txt").write_bytes(b"")
    (tmp_path / "old").mkdir()
    assert archive.names() == ["2027-01-01/a.parquet"]


def test_an_unknown_kind_of_url():
    with pytest.raises(ArchiveUnavailable, match="the archive nowhere://x cannot be opened"):
        open_archive("nowhere://x")


def test_names_are_by_time_and_never_alike():
    names = [new_name(NEW_YEAR + second, "c") for second in (0, 0.001, 1, 60, 86400)]
    assert names == sorted(names)
    assert names[0].startswith("2027-01-01/20270101T000000.000000-c-")
    assert new_name(NEW_YEAR, "c") != new_name(NEW_YEAR, "c")


def test_prefixes_of_ids_before_a_moment():
    """All ids that were made long enough before have one of them, and exactly one; none that was made since has."""
    chance = random.Random(1)
    for _ in range(200):
        moment = chance.uniform(1e9, 4e9)
        prefixes = list(prefixes_before(moment))
        assert len(prefixes) <= 7 * 15
        for distance in (0.0, STEP, chance.uniform(0, 2 * STEP), chance.uniform(0, 1e9)):
            for wall in (moment - distance - 0.002, moment + distance + 0.002):
                task = new_task_id(wall)
                found = [prefix for prefix in prefixes if task.startswith(prefix)]
                assert len(found) == (time_of(task) < moment - STEP) or (not distance - STEP > 0 and len(found) <= 1)
                assert not found or time_of(task) < moment
