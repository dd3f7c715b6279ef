"""Frozen dataclasses as JSON: what the functions that are made for each class take and refuse (records and messages: `test_codec.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.json_values import from_json, read_json, to_json, write_json


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    number: int
    share: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Slotted:
    text: str
    flag: bool = False
    colour: Colour = Colour.RED
    maybe: int | None = None
    words: tuple[str, ...] = ()
    inner: tuple[Inner, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    by_name: Mapping[str, Inner] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Without slots, and with a check of its own."""

    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError("less than nothing")


inner = st.builds(Inner, number=st.integers(), share=st.floats(allow_nan=False))
slotted = st.builds(
    Slotted,
    text=st.text(),
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    maybe=st.none() | st.integers(),
    words=st.lists(st.text()).map(tuple),
    inner=st.lists(inner, max_size=2).map(tuple),
    shares=st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=2),
    by_name=st.dictionaries(st.text(), inner, max_size=2),
)


@given(slotted)
def test_what_was_written_is_read(value):
    assert read_json(write_json(to_json(value)), lambda body: from_json(Slotted, body)) == value


def test_what_has_its_default_is_left_out_and_what_is_unknown_passed_over():
    assert to_json(Slotted(text="a")) == {"text": "a"}
    assert from_json(Slotted, {"text": "a", "of a later release": 1}) == Slotted(text="a")


def test_objects_do_not_share_a_default():
    """One that somebody changed, against the rules, would change all others."""
    first, second = from_json(Slotted, {"text": "a"}), from_json(Slotted, {"text": "b"})
    assert first.shares is not second.shares


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": 1},
        {"text": None},
        {"text": "a", "flag": 1},
        {"text": "a", "colour": "green"},
        {"text": "a", "colour": ["red"]},
        {"text": "a", "maybe": "1"},
        {"text": "a", "maybe": True},
        {"text": "a", "words": "abc"},
        {"text": "a", "words": ["a", 1]},
        {"text": "a", "inner": [{"number": 1}, {}]},
        {"text": "a", "inner": {"number": 1}},
        {"text": "a", "shares": {"a": "1"}},
        {"text": "a", "shares": [1]},
        {"text": "a", "shares": {"a": True}},
        {"text": "a", "by_name": {"a": 1}},
        [],
    ],
)
def test_what_does_not_fit_is_refused(body):
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError)):
        from_json(Slotted, body)


def test_a_whole_number_is_a_float_where_one_is_expected():
    read = from_json(Inner, {"number": 1, "share": 2})
    assert type(read.share) is float


def test_a_class_with_a_check_of_its_own_is_asked():
    assert from_json(Plain, {"number": 2}) == Plain(number=2)
    assert from_json(Plain, {}) == Plain()
    with pytest.raises(ValueError, match="less than nothing"):
        from_json(Plain, {"number": -1})
