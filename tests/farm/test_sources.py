"""What a command takes along: the files that belong to its folder, as an archive that equal files make equal."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm import sources
from dtf_lightning.farm.sources import Source, pack, unpack


def unpacked(source: Source, folder: Path) -> dict[str, str]:
    """The files of an archive, by their names."""
    folder.mkdir(parents=True)
    archive = folder.with_suffix(".tar.gz")
    archive.write_bytes(source.archive)
    unpack(archive, folder)
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path):
    """One file tracked, one new, one ignored, one deleted without git's knowledge."""
    folder = tmp_path / "repository"
    write(folder, tracked="1", inner__new="2", ignored="3", deleted="4", _dot_gitignore="ignored\n")
    git(folder, "init", "-q")
    git(folder, "add", "tracked", "deleted", ".gitignore")
    (folder / "deleted").unlink()
    return folder


def test_a_repository(repository, tmp_path):
    """From anywhere in it the whole of it is taken along, and the command runs where it was given."""
    source = pack(repository / "inner")
    assert source.folder == "inner"
    assert unpacked(source, tmp_path / "out") == {"tracked": "1", "inner/new": "2", ".gitignore": "ignored\n"}
    assert pack(repository).folder == ""
    assert pack(repository).digest == source.digest


def test_a_folder_that_is_no_repository(tmp_path):
    """All files, but those that are named in `.dtfignore`."""
    folder = tmp_path / "folder"
    write(folder, a="1", b_dot_log="2", data__c="3", deep__data__d="4", _dot_dtfignore="# patterns\n*.log\n\n/data/\n")
    names = set(unpacked(pack(folder), tmp_path / "out"))
    assert names == {"a", "deep/data/d", ".dtfignore"}


def test_equal_files_are_an_equal_archive(tmp_path):
    """Whenever they were written, and whoever owns them; what a mode tells, such as that a file can be run, is kept."""
    digests = []
    for name, when in (("one", 1), ("two", 2)):
        write(tmp_path / name, a="x", b="y")
        (tmp_path / name / "a").chmod(0o755)
        os.utime(tmp_path / name / "b", (when, when))
        digests.append(pack(tmp_path / name).digest)
    assert digests[0] == digests[1]
    unpacked(pack(tmp_path / "one"), tmp_path / "out")
    assert os.access(tmp_path / "out" / "a", os.X_OK)
    (tmp_path / "two" / "a").chmod(0o644)
    assert pack(tmp_path / "two").digest != digests[0]


def test_what_is_no_file_is_left_out(tmp_path):
    """A socket, a pipe: as `git` leaves them out. A link goes along as a link."""
    folder = tmp_path / "folder"
    write(folder, a="1")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("a")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        source = pack(folder)
    assert unpacked(source, tmp_path / "out") == {"a": "1", "link": "1"}
    assert (tmp_path / "out" / "link").is_symlink()


def test_too_much(tmp_path, monkeypatch):
    """It is said what to do."""
    write(tmp_path / "folder", a="x" * 100)
    monkeypatch.setattr(sources, "MAX_BYTES", 99)
    with pytest.raises(SettingsError, match=r"more than 0 MiB: name what the command does not need in .*\.dtfignore"):
        pack(tmp_path / "folder")


def test_a_file_that_becomes_shorter(tmp_path, monkeypatch):
    """It is cut while it is packed."""
    write(tmp_path / "folder", a="x" * 100)
    look = sources._tar_info

    def look_and_cut(archive: tarfile.TarFile, path: Path, name: str) -> tarfile.TarInfo | None:
        info = look(archive, path, name)
        path.write_text("")
        return info

    monkeypatch.setattr(sources, "_tar_info", look_and_cut)
    with pytest.raises(
        SettingsError, match=r"folder/a cannot be taken along \(unexpected end of data\): .*--no-source"
    ):
        pack(tmp_path / "folder")


@pytest.mark.parametrize("name", ["../outside", "/outside"])
def test_an_archive_stays_in_its_folder(tmp_path, name):
    """A name that leads out of it is refused, or brought inside."""
    archive = tmp_path / "archive"
    with tarfile.open(archive, "w:gz") as files:
        info = tarfile.TarInfo(name)
        info.size = 1
        files.addfile(info, io.BytesIO(b"x"))
    (tmp_path / "out").mkdir()
    if name.startswith("/"):
        unpack(archive, tmp_path / "out")
        assert (tmp_path / "out" / "outside").exists()
    else:
        with pytest.raises(SettingsError, match="cannot be unpacked"):
            unpack(archive, tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def test_an_archive_that_is_cut(tmp_path):
    """Its digest was checked when it came; a disk may lose what it has written."""
    write(tmp_path / "folder", a="x" * 10_000)
    (tmp_path / "archive").write_bytes(pack(tmp_path / "folder").archive[:30])
    with pytest.raises(SettingsError, match="cannot be unpacked"):
        unpack(tmp_path / "archive", tmp_path / "out")
