"""Keys and ids: every name finds its way back, and none leaves its folder."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.keys import LIVE, FarmKeys, Kind
from dtf_lightning.farm.record.task_id import check_task_id, new_task_id, time_of

NAMES = st.text(min_size=1, max_size=20)


OTHERS = (Kind.LEADER, Kind.FAILED, Kind.MEMBER, Kind.ENDING, Kind.QUARANTINE, Kind.SECRET)
"""Kinds whose keys have none or two names."""


@given(NAMES, st.sampled_from([kind for kind in Kind if kind not in OTHERS]), NAMES)
def test_a_key_is_read_as_it_was_written(farm: str, kind: Kind, name: str):
    """Slashes, quotes and dots in names of farms and records included."""
    keys = FarmKeys(farm)
    key = keys.key(kind, name)
    assert keys.parse(key) == (kind, (name,))
    assert key.startswith(keys.folder(kind))
    assert key.removeprefix(keys.folder(kind)).count("/") == 0


@given(NAMES, NAMES)
def test_farms_are_apart(one: str, other: str):
    """No farm's prefix is the beginning of another's."""
    assert (one == other) == FarmKeys(one).prefix.startswith(FarmKeys(other).prefix)


def test_the_keys_that_are_not_like_the_others():
    keys = FarmKeys("lab")
    assert keys.leader == "/dtf/farm/lab/leader" == keys.folder(Kind.LEADER)
    assert keys.parse(keys.leader) == (Kind.LEADER, ())
    assert keys.key(Kind.FAILED, "t", 2) == "/dtf/farm/lab/failed/t/2"
    assert keys.parse("/dtf/farm/lab/failed/t/2") == (Kind.FAILED, ("t", "2"))
    assert keys.parse(keys.key(Kind.ENDING, "t", 17)) == (Kind.ENDING, ("t", "17"))
    assert keys.parse(keys.key(Kind.MEMBER, "t", 2)) == (Kind.MEMBER, ("t", "2"))
    assert keys.parse(keys.key(Kind.QUARANTINE, "p", "a/b::t[1]")) == (Kind.QUARANTINE, ("p", "a/b::t[1]"))


@pytest.mark.parametrize("key", ["what/is/this", "tasks/", "tasks/a/b", "leader/x", "failed/t", "new/a"])
def test_a_key_of_another_release(key: str):
    keys = FarmKeys("lab")
    assert keys.parse(keys.prefix + key) is None


def test_empty_names_are_refused():
    with pytest.raises(SettingsError, match="a farm's name is empty"):
        FarmKeys("")
    with pytest.raises(SettingsError, match="an empty name under tasks/"):
        FarmKeys("lab").key(Kind.TASK, "")


def test_a_start_reads_nothing_that_grows_with_history():
    assert not {Kind.DONE, Kind.FAILED, Kind.KEY, Kind.TOMBSTONE} & set(LIVE)


@given(st.floats(0, 4e9), st.integers(0, 2**74 - 1))
def test_ids_carry_their_time(wall: float, chance: int):
    """To the millisecond, as a UUID of version 7 that sorts by its time."""
    task_id = new_task_id(wall, chance)
    assert abs(time_of(task_id) - wall) <= 0.001
    assert (uuid.UUID(task_id).version, uuid.UUID(task_id).variant) == (7, uuid.RFC_4122)
    assert task_id < new_task_id(wall + 0.002, 0)


def test_ids_differ():
    assert len({new_task_id(1.0) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text", ["", "a", str(uuid.UUID(int=0)), new_task_id(1.0, 7).upper(), "../" + new_task_id(1.0, 7)]
)
def test_other_texts_are_no_ids(text: str):
    with pytest.raises(SettingsError, match="is no UUID of version 7"):
        time_of(text)


def test_ids_that_the_farm_cannot_judge_are_refused():
    """Older than what is remembered, or from a clock that is far ahead."""
    now, task_id = 10_000.0, new_task_id(9_000.0)
    check_task_id(task_id, now, retention=1000.5, skew=0)
    check_task_id(task_id, 8_950.0, retention=0, skew=60)
    with pytest.raises(SettingsError, match="made 1000 s ago, and the farm remembers ids for 900 s"):
        check_task_id(task_id, now, retention=900, skew=0)
    with pytest.raises(SettingsError, match="made 100 s in the future, of which 60 s are allowed"):
        check_task_id(task_id, 8_900.0, retention=900, skew=60)
