"""Inputs by digest, environments by lock, and what leaves when there is no room."""

from __future__ import annotations

import hashlib
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.worker.caches.environments import EnvironmentFailed, UvEnvironments, environment_key
from dtf_lightning.farm.worker.caches.eviction import Entry, victims
from dtf_lightning.farm.worker.caches.inputs import InputCache, InputDamaged
from dtf_lightning.farm.worker.caches.libraries import trim, units
from dtf_lightning.farm.worker.caches.room import EVERY, CacheRoom
from dtf_lightning.whole_files import BESIDE
from support.farm.worker import PATIENCE
from support.store_worlds import ManualClock

entries = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=2), st.tuples(st.integers(0, 9), st.integers(0, 5)), max_size=8
)


@given(entries, st.integers(0, 40), st.sets(st.text("abcdef", min_size=1, max_size=2)))
def test_victims(found, limit, held):
    """One after the other, the least recently used that is not held, and no more than needed."""
    left = {name: Entry(name=name, size=size, used=used) for name, (size, used) in found.items()}
    expected = []
    while sum(it.size for it in left.values()) > limit and left.keys() - held:
        name = min(left.keys() - held, key=lambda name: (left[name].used, name))
        expected.append(name)
        del left[name]
    whole = [Entry(name=name, size=size, used=used) for name, (size, used) in found.items()]
    assert victims(whole, limit, held) == expected


# --- inputs ------------------------------------------------------------------------------------------------------------


class Time:
    """A clock that goes on by a second whenever it is asked."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self.at = at

    def monotonic(self) -> float:
        self.at += 1
        return self.at

    wall = monotonic


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def must_not(file):
    raise AssertionError("it is in the cache")


def get(cache, data: bytes, fetch=None) -> bytes:
    with cache.hold(digest(data), fetch or (lambda file: file.write(data))) as path:
        return path.read_bytes()


def test_fetched_once(tmp_path):
    """And not again by the next process."""
    cache = InputCache(tmp_path, 100)
    assert get(cache, b"hello") == get(cache, b"hello", must_not) == b"hello"
    again = InputCache(tmp_path, 100)
    assert get(again, b"hello", must_not) == b"hello"
    assert (again.digests(), again.size) == ({digest(b"hello")}, 5)


def test_the_least_recently_used_goes(tmp_path):
    """By use, not by age; also after a restart."""
    cache = InputCache(tmp_path, 10, clock=Time())
    for data in (b"aaaa", b"bbbb", b"aaaa", b"cccc"):
        get(cache, data)
    assert cache.digests() == {digest(b"aaaa"), digest(b"cccc")}
    again = InputCache(tmp_path, 4, clock=Time(2_000_000.0))
    assert again.digests() == {digest(b"cccc")}


def test_what_is_held_stays(tmp_path):
    """Even where it is more than there is room for; it goes when it is let go."""
    cache = InputCache(tmp_path, 5, clock=Time())
    with cache.hold(digest(b"large one"), lambda file: file.write(b"large one")) as path:
        get(cache, b"small")
        assert path.exists()
        with cache.hold(digest(b"large one"), must_not):
            pass
        assert path.exists()
    assert not path.exists()
    assert cache.size <= 5


@pytest.mark.parametrize("error", [None, OSError("the network is away")])
def test_what_is_damaged_is_not_kept(tmp_path, error):
    """Nor is what could not be fetched as a whole; the next one tries again."""
    cache = InputCache(tmp_path, 100)

    def fetch(file):
        file.write(b"hel")
        if error:
            raise error

    with pytest.raises(OSError if error else InputDamaged):
        get(cache, b"hello", fetch)
    assert list(tmp_path.iterdir()) == []
    assert get(cache, b"hello") == b"hello"


def test_leftovers_go(tmp_path):
    (tmp_path / f".{digest(b'x')}.0{BESIDE}").write_bytes(b"half")
    assert InputCache(tmp_path, 100).size == 0
    assert list(tmp_path.iterdir()) == []


def test_two_want_the_same(tmp_path):
    """One fetches, the other waits for it; if the first fails, the other one fetches."""
    cache = InputCache(tmp_path, 100)
    begun, go_on, found = threading.Event(), threading.Event(), []

    def slowly(file):
        begun.set()
        assert go_on.wait(PATIENCE)
        raise OSError("the first one fails")

    def first():
        try:
            get(cache, b"hello", slowly)
        except OSError as error:
            found.append(str(error))

    threads = [threading.Thread(target=first), threading.Thread(target=lambda: found.append(get(cache, b"hello")))]
    threads[0].start()
    assert begun.wait(PATIENCE)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(map(str, found)) == ["b'hello'", "the first one fails"]


def test_what_is_no_digest(tmp_path):
    with (
        pytest.raises(ValueError, match="64 hexadecimal digits; got"),
        InputCache(tmp_path, 1).hold("../x", must_not),
    ):
        pass


# --- libraries ---------------------------------------------------------------------------------------------------------


def test_units_of_libraries(tmp_path):
    """A model of the hub, a checkpoint of torch; all else by its folder. The least recently used unit goes as a whole."""
    sizes = {
        "huggingface/hub/models--a/blobs/1": 10, "huggingface/hub/models--a/blobs/2": 10,
        "huggingface/hub/models--b/blobs/1": 10, "huggingface/datasets/x": 1, "torch/hub/checkpoints/r.pt": 5,
        "uv/wheels/w.whl": 3, "single": 1,
    }  # fmt: skip
    for number, (name, size) in enumerate(sizes.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    os.utime(tmp_path / "huggingface/hub/models--a/blobs/1", (2000, 1000))  # it was read
    assert {it.name: it.size for it in units(tmp_path)} == {
        "huggingface/hub/models--a": 20, "huggingface/hub/models--b": 10, "huggingface/datasets": 1,
        "torch/hub/checkpoints/r.pt": 5, "uv": 3, "single": 1,
    }  # fmt: skip
    assert trim(tmp_path, 30) == ["huggingface/hub/models--b"]
    assert not (tmp_path / "huggingface/hub/models--b").exists()
    assert trim(tmp_path, 30) == []
    assert trim(tmp_path, 0)[-1] == "huggingface/hub/models--a"


# --- environments ------------------------------------------------------------------------------------------------------

UV = """#!/bin/sh
echo "$@ $UV_PROJECT_ENVIRONMENT $UV_TORCH_BACKEND" >> {calls}
case "$1" in
venv) mkdir -p "$4/bin" && : > "$4/bin/python";;
*) [ ! -e {fails} ] || {{ echo "no solution found" >&2; exit 2; }}
esac
"""


@pytest.fixture
def uv(tmp_path):
    """Stands for uv: notes its calls in `calls`, fails while `fails` is there."""
    path = tmp_path / "uv"
    path.write_text(UV.format(calls=tmp_path / "calls", fails=tmp_path / "fails"))
    path.chmod(0o755)
    return UvEnvironments(tmp_path / "environments", uv=str(path), timeout=PATIENCE)


def calls(tmp_path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_keys():
    """Each part makes a difference, and nothing else does."""
    base = {"lock": b"a==1", "python": "3.11", "machine": "Linux-x86_64", "accelerator": "cpu"}
    changed = [{}, {"lock": b"a==2"}, {"python": "3.12"}, {"machine": "Linux-aarch64"}, {"accelerator": "cu128"}]
    keys = [environment_key(**base | change) for change in changed]
    assert len(set(keys)) == 5
    assert environment_key(**base) == keys[0]


@pytest.mark.process
def test_an_environment_is_made_once(uv, tmp_path):
    lock = tmp_path / "requirements.txt"
    lock.write_text("a==1\n")
    found = uv.make(lock, python="3.11", accelerator="cu128")
    assert uv.make(lock, python="3.11", accelerator="cu128") == found
    made = [line.split() for line in calls(tmp_path)]
    assert made == [
        ["venv", "--python", "3.11", str(found.path), "cu128"],
        ["pip", "sync", "--python", f"{found.path}/bin/python", str(lock), "cu128"],
    ]
    assert found.variables({"PATH": "/bin"}) == {"VIRTUAL_ENV": str(found.path), "PATH": f"{found.path}/bin:/bin"}


@pytest.mark.process
def test_an_environment_of_a_project(uv, tmp_path):
    (tmp_path / "project").mkdir()
    lock = tmp_path / "project" / "uv.lock"
    lock.write_text("version = 1\n")
    found = uv.make(lock, python="3.11")
    assert calls(tmp_path)[1].split() == [
        "sync", "--frozen", "--no-install-project", "--project", str(lock.parent), str(found.path),
    ]  # fmt: skip


@pytest.mark.process
def test_an_environment_that_fails(uv, tmp_path):
    """What uv said is told; the half of an environment is not used, but made anew."""
    lock = tmp_path / "requirements.txt"
    lock.write_text("a==1\n")
    (tmp_path / "fails").touch()
    with pytest.raises(EnvironmentFailed, match="exit code 2: no solution found"):
        uv.make(lock, python="3.11")
    (tmp_path / "fails").unlink()
    found = uv.make(lock, python="3.11")
    assert [line.split()[0] for line in calls(tmp_path)] == ["venv", "pip", "venv", "pip"]
    assert found.path.exists()


@pytest.mark.process
def test_environments_leave(uv, tmp_path):
    """The least recently used first."""
    found = []
    for number in range(3):
        lock = tmp_path / "requirements.txt"
        lock.write_text(f"a=={number}\n")
        found.append(uv.make(lock, python="3.11"))
        os.utime(found[-1].path / "dtf-ready.json", (1000 + number, 1000 + number))
    size = (found[0].path / "dtf-ready.json").stat().st_size
    assert uv.trim(2 * size) == [found[0].key]
    assert [it.path.exists() for it in found] == [False, True, True]


def test_no_uv(tmp_path):
    lock = tmp_path / "requirements.txt"
    lock.write_text("a==1\n")
    with pytest.raises(EnvironmentFailed, match="is uv installed on this worker"):
        UvEnvironments(tmp_path / "environments", uv=str(tmp_path / "uv")).make(lock, python="3.11")


class TestRoom:
    """The cache folder as a whole."""

    @pytest.fixture
    def room(self, tmp_path):
        self.clock = ManualClock()
        room = CacheRoom(tmp_path, 100, clock=self.clock)
        data = bytes(60)
        with room.inputs.hold(hashlib.sha256(data).hexdigest(), lambda file: file.write(data)):
            pass
        for number, name in enumerate(("git/r/pack", "huggingface/hub/models--a/x", "torch/hub/checkpoints/c")):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_bytes(bytes(25))
            os.utime(tmp_path / name, (1000 + number, 1000 + number))
        return room

    def test_libraries_have_what_inputs_leave(self, room, tmp_path):
        """60 bytes of inputs leave 40: one of three, the latest used."""
        assert room.tidy(lambda: False) == ["git/r", "huggingface/hub/models--a"]
        assert room.inputs.size == 60
        assert list(room.inputs.digests())
        assert (tmp_path / "torch/hub/checkpoints/c").exists()

    def test_not_while_an_attempt_is_at_hand_and_not_all_the_time(self, room, tmp_path):
        assert room.tidy(lambda: True) == []
        assert len(room.tidy(lambda: False)) == 2
        (tmp_path / "more").write_bytes(bytes(100))
        assert room.tidy(lambda: False) == []
        self.clock.now += EVERY
        assert "torch/hub/checkpoints/c" in room.tidy(lambda: False)

    def test_an_attempt_waits_for_it(self, room):
        """It counts as busy before it asks; whoever trims has seen it, or is waited for."""
        asked, go_on = threading.Event(), threading.Event()

        def busy() -> bool:
            asked.set()
            assert go_on.wait(PATIENCE)
            return True

        trimming = threading.Thread(target=room.tidy, args=(busy,))
        waiting = threading.Thread(target=room.wait)
        trimming.start()
        assert asked.wait(PATIENCE)
        waiting.start()
        assert waiting.is_alive()
        go_on.set()
        for thread in (trimming, waiting):
            thread.join(PATIENCE)
            assert not thread.is_alive()
