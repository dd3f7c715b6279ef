"""Pages of a list: an order, a place in it, and the rows behind that place.

Rules that this file guards:
- An order is total: rows of one key stand by their names, which are unique.
- A cursor names the last row of a page by its key and name and says in which order that is; what comes or goes between
  two pages moves nothing else.
- A cursor that was made for another order is refused: it would be a place at random.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from dtf_lightning.errors import SettingsError

T = TypeVar("T")
Key = str | int
Row = tuple[Key, str, T]
"""What it is sorted by, its name, and the row itself."""

LAST = 2**62
"""The key of a time that is not there: what has not ended stands behind all that has."""


@dataclass(frozen=True)
class Order:
    """By which field a list is sorted, and in which direction."""

    field: str
    descending: bool = False

    def __str__(self) -> str:
        return f"{'-' if self.descending else ''}{self.field}"


@dataclass(frozen=True)
class Place:
    """The last row of a page."""

    key: Key
    name: str


def read_order(text: str, fields: Mapping[str, type], default: str) -> Order:
    """Return the order that a text such as `name` or `-created` stands for. Raises `SettingsError`.

    Args:
        fields: what the list can be sorted by, and of which type the keys are.
        default: for an empty text.
    """
    text = text or default
    order = Order(text.removeprefix("-"), text.startswith("-"))
    if order.field not in fields:
        raise SettingsError(
            f"sort: this list cannot be sorted by {order.field!r}; expected one of {', '.join(fields)}, with a - before it "
            "for the greatest first"
        )
    return order


def write_cursor(order: Order, place: Place) -> str:
    """Return a place as text for a client, who gives it back."""
    text = json.dumps([str(order), place.key, place.name])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(text: str, order: Order, fields: Mapping[str, type]) -> Place | None:
    """Return the place that `write_cursor` gave; `None` for an empty text. Raises `SettingsError`."""
    if not text:
        return None
    of: object
    key: Any
    name: Any
    try:
        of, key, name = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise SettingsError(
            f"cursor: {text[:80]!r} is none of this farm's; expected the `next` of the page before"
        ) from None
    if of != str(order):
        raise SettingsError(f"cursor: it is of a list that is sorted by {str(of)[:80]!r}, not by {str(order)!r}")
    fits = isinstance(key, fields[order.field]) and not isinstance(key, bool) and isinstance(name, str)
    if not fits or (isinstance(key, int) and abs(key) > LAST):
        raise SettingsError(f"cursor: {text[:80]!r} is none of this farm's; expected the `next` of the page before")
    return Place(key, name)


def is_behind(key: Key, name: str, order: Order, place: Place | None) -> bool:
    """Whether a row stands behind a place."""
    if place is None:
        return True
    here, there = (key, name), (place.key, place.name)
    return here < there if order.descending else here > there


def first_rows(rows: Iterable[Row[T]], order: Order, limit: int) -> list[Row[T]]:
    """Return the first rows in an order, at most `limit`."""

    def rank(row: Row[T]) -> Any:
        return row[:2]

    return (heapq.nlargest if order.descending else heapq.nsmallest)(limit, rows, key=rank)


def page(rows: Iterable[Row[T]], order: Order, behind: Place | None, limit: int) -> tuple[list[T], str | None]:
    """Return one page of rows, and the cursor of the next one; `None` where there is none."""
    found = first_rows((row for row in rows if is_behind(row[0], row[1], order, behind)), order, limit + 1)
    return [row for _, _, row in found[:limit]], next_cursor(found, order, limit)


def next_cursor(found: list[Row[T]], order: Order, limit: int) -> str | None:
    """Return the cursor behind the first `limit` rows, where there are more."""
    if len(found) <= limit:
        return None
    key, name, _ = found[limit - 1]
    return write_cursor(order, Place(key, name))
