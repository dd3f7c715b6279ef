"""Files that tasks leave, in a folder and at an fsspec URL."""

from __future__ import annotations

import hashlib
import os
import uuid

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.results import artifacts
from dtf_lightning.farm.results.artifacts import ArtifactStore, ArtifactsUnavailable, ArtifactTooLarge
from dtf_lightning.farm.settings.hosts import local_files_refusal
from dtf_lightning.whole_files import BESIDE

TASK, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return ArtifactStore(url, max_size=1000)


def put(store, name, data, task=TASK, revision=7):
    return store.put(task, revision, name, digest(data), iter([data[:2], data[2:]]))


def test_what_is_put_is_there(store):
    """Under its name, with size and digest, for its attempt alone; a name may have folders and signs."""
    put(store, "junit.xml", b"<testsuite/>")
    put(store, "plots/a b%2F.png", b"png")
    put(store, "junit.xml", b"other", revision=8)
    first, second = store.all(TASK, 7)
    assert (first.name, first.size, first.digest) == ("junit.xml", 12, digest(b"<testsuite/>"))
    assert second.name == "plots/a b%2F.png"
    assert b"".join(store.open(TASK, 7, second)) == b"png"
    assert store.find(TASK, 8, "junit.xml").size == 5
    assert store.find(TASK, 7, "nothing") is None
    assert store.all(OTHER, 7) == []


def test_twice_is_once(store):
    assert put(store, "a", b"abc") == put(store, "a", b"abc")
    assert len(store.all(TASK, 7)) == 1


@pytest.mark.parametrize(
    ("name", "data", "said", "error"),
    [
        ("a", b"x" * 1001, "has more than the 1000 bytes", ArtifactTooLarge),
        ("n" * 200, b"x", "has 200 bytes when it is quoted, 180 are allowed", SettingsError),
        ("", b"x", "name", SettingsError),
    ],
)
def test_refused(store, name, data, said, error):
    with pytest.raises(error, match=said):
        put(store, name, data)
    assert store.all(TASK, 7) == []


def test_another_digest(store):
    """Nothing is kept of what does not have its digest."""
    with pytest.raises(SettingsError, match="came with the digest"):
        store.put(TASK, 7, "a", digest(b"expected"), iter([b"got"]))
    assert store.all(TASK, 7) == []


@pytest.mark.parametrize("task", ["../../etc", "x", ""])
def test_no_task(store, task):
    with pytest.raises(SettingsError, match="is no task id"):
        put(store, "a", b"x", task=task)
    with pytest.raises(SettingsError, match="is no task id"):
        store.remove(task)


def test_by_task_and_gone(store):
    """What garbage collection decides by, and what it does."""
    put(store, "a", b"abc")
    put(store, "b", b"de", revision=8)
    put(store, "c", b"f", task=OTHER)
    assert {(one.task, one.size) for one in store.tasks()} == {(TASK, 5), (OTHER, 1)}
    store.remove(TASK)
    store.remove(TASK)
    assert [one.task for one in store.tasks()] == [OTHER]


def test_half_a_file_of_a_dead_process(tmp_path, monkeypatch):
    """It is no artifact, and goes when it is old."""
    store = ArtifactStore(str(tmp_path), max_size=1000)
    put(store, "a", b"x")
    beside = tmp_path / TASK / "7" / f".{digest(b'y')}-y.0{BESIDE}"
    beside.write_bytes(b"half")
    assert [one.name for one in store.all(TASK, 7)] == ["a"]
    os.utime(beside, (1, 1))
    store.all(TASK, 7)
    assert not beside.exists()


def test_a_full_disk(tmp_path, monkeypatch):
    """It is said, and nothing of the file is left."""
    store = ArtifactStore(str(tmp_path), max_size=1000)

    def full():
        yield b"x"
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactsUnavailable, match="No space left on device"):
        store.put(TASK, 7, "a", digest(b"xy"), full())
    assert os.listdir(tmp_path / TASK / "7") == []


def test_a_url_that_nothing_can_reach():
    with pytest.raises(SettingsError, match="the artifacts' store nowhere://x cannot be opened"):
        ArtifactStore("nowhere://x", max_size=1)


@pytest.mark.parametrize(
    ("others", "local", "shared", "refused"),
    [
        ({}, {"farm.folder": "/f"}, False, False),
        ({"c1": "here", "old": ""}, {"farm.folder": "/f"}, False, False),
        ({"c1": "there"}, {"farm.folder": "/f"}, False, True),
        ({"c1": "there"}, {"farm.folder": "/f"}, True, False),
        ({"c1": "there"}, {}, False, False),
    ],
)
def test_a_second_host(others, local, shared, refused):
    """Files on a disk of one's own are refused once a coordinator runs elsewhere, with what to write."""
    told = local_files_refusal("here", others, local, shared=shared)
    assert bool(told) is refused
    if refused:
        assert "the coordinator c1 of this farm runs on there, and this one on here" in told
        assert "`farm.folder` (/f)" in told
        assert "`farm: {folder: THAT, shared: true}`" in told
    assert artifacts.MAX_NAME < 255 - 65
