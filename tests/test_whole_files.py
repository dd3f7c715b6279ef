"""Files that are whole under their name, or not there."""

from __future__ import annotations

import os

import pytest

from dtf_lightning.whole_files import is_left_beside, whole_file, write_durably, write_whole


@pytest.mark.parametrize("durable", [False, True])
def test_the_old_or_the_new(tmp_path, durable):
    """While it is written the name holds the old content; an error leaves that, and nothing beside it."""
    path = tmp_path / "file"
    write_whole(path, b"old", durable=durable)
    with pytest.raises(TypeError), whole_file(path, durable=durable) as file:
        file.writelines([b"half", "no bytes"])
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"old", ["file"])
    with whole_file(path, durable=durable) as file:
        file.write(b"new")
        (beside,) = (one for one in tmp_path.iterdir() if one != path)
        assert is_left_beside(beside)
        assert path.read_bytes() == b"old"
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"new", ["file"])
    assert not is_left_beside(path)


def test_durable_means_file_and_folder(tmp_path, monkeypatch):
    """The content before its name, and the name before the write returns."""
    done = []
    rename, fsync = type(tmp_path).rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (done.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(type(tmp_path), "rename", lambda self, to: (done.append("rename"), rename(self, to))[1])
    write_durably(tmp_path / "file", b"x")
    content, named, folder = done
    assert content.startswith(str(tmp_path / ".file."))
    assert (named, folder) == ("rename", str(tmp_path))


def test_no_room(tmp_path):
    """The first error is the one that is raised."""
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "file", b"x")
