"""Pages of lists: property tests against a list that is sorted as a whole."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.paging import LAST, Order, Place, page, read_cursor, read_order, write_cursor

FIELDS = {"name": str, "ended": int}
ROWS = st.dictionaries(st.text(max_size=2), st.integers(0, 3), max_size=12)


@given(rows=ROWS, descending=st.booleans(), limit=st.integers(1, 5))
def test_pages_joined_are_the_sorted_list(rows, descending, limit):
    order = Order("ended", descending)
    wanted = sorted(((key, name) for name, key in rows.items()), reverse=descending)
    found, cursor = [], ""
    for _ in range(len(rows) + 1):
        behind = read_cursor(cursor, order, FIELDS)
        part, after = page(((key, name, (key, name)) for name, key in rows.items()), order, behind, limit)
        assert len(part) <= limit
        found += part
        if after is None:
            break
        cursor = after
    assert found == wanted


@given(rows=ROWS, more=ROWS, descending=st.booleans(), limit=st.integers(1, 5), data=st.data())
def test_what_comes_and_goes_between_two_pages_moves_nothing_else(rows, more, descending, limit, data):
    """Rows that were there all the time are shown exactly once."""
    order = Order("ended", descending)
    going = data.draw(st.sets(st.sampled_from(sorted(rows))) if rows else st.just(set()))
    staying = {name: key for name, key in rows.items() if name not in going}
    later = {**more, **staying}
    found, cursor = page(((key, name, name) for name, key in rows.items()), order, None, limit)
    while cursor is not None:
        behind = read_cursor(cursor, order, FIELDS)
        part, cursor = page(((key, name, name) for name, key in later.items()), order, behind, limit)
        found += part
    assert sorted(name for name in found if name in staying) == sorted(staying)


@given(key=st.one_of(st.text(), st.integers(-LAST, LAST)), name=st.text(), descending=st.booleans())
def test_a_cursor_comes_back_as_it_went(key, name, descending):
    order = Order("name" if isinstance(key, str) else "ended", descending)
    assert read_cursor(write_cursor(order, Place(key, name)), order, FIELDS) == Place(key, name)


def coded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "text",
    [
        "x", "é", "%00", "AAAA", "a" * 10_000, coded(7), coded([]), coded(["name", 1, "a"]), coded(["name", "a", None]),
        coded(["name", "a"]), base64.b64encode(b"[" * 100_000).decode(),
    ],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(SettingsError, match="none of this farm's"):
        read_cursor(text, Order("name"), FIELDS)


@pytest.mark.parametrize("key", [LAST + 1, -LAST - 1, True, 1.5])
def test_a_key_that_no_column_holds_is_refused(key):
    with pytest.raises(SettingsError, match="none of this farm's"):
        read_cursor(coded(["ended", key, "a"]), Order("ended"), FIELDS)


def test_a_cursor_of_another_order_is_refused():
    cursor = write_cursor(Order("name"), Place("a", "b"))
    with pytest.raises(SettingsError, match="sorted by 'name', not by '-name'"):
        read_cursor(cursor, Order("name", descending=True), FIELDS)


def test_orders():
    assert read_order("", FIELDS, "-ended") == Order("ended", descending=True)
    assert read_order("name", FIELDS, "-ended") == Order("name")
    with pytest.raises(SettingsError, match="cannot be sorted by 'nme'; expected one of name, ended"):
        read_order("-nme", FIELDS, "-ended")
