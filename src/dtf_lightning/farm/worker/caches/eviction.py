"""`victims` decides what leaves a cache. It is pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something in a cache."""

    name: str
    size: int
    """Bytes."""
    used: float
    """When it was used last, in seconds; larger is later."""


def victims(entries: Iterable[Entry], limit: int, held: Collection[str] = ()) -> list[str]:
    """Names of those to remove so that the others have `limit` bytes at most; the least recently used ones come first.

    Those that are held stay, also where they alone are more.
    """
    entries = list(entries)
    excess = sum(entry.size for entry in entries) - limit
    found = []
    for entry in sorted(entries, key=lambda entry: (entry.used, entry.name)):
        if excess <= 0:
            break
        if entry.name not in held:
            found.append(entry.name)
            excess -= entry.size
    return found
