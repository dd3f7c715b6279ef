"""Says which files of a farm may go: logs, artifacts and sources, by their age and by what they take together. Pure.

Rules:
- What a live task needs never goes, and neither does what came or was used a moment ago: its task may be on its way.
- What is older than its age goes. Of the rest the oldest go until what is left takes no more than its total.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

YOUNG = 3600.0
"""Seconds after its last use in which nothing goes: between a source's arrival and its task's lie minutes at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredThing:
    """A log, the artifacts of a task, or a source."""

    name: str
    size: int
    """Bytes."""
    used: float
    """When it came or was used last, seconds since the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Keep:
    """How much of a kind of thing is kept."""

    age: float
    """Seconds since its last use."""
    total: int | None
    """Bytes of all of them; `None`: whatever they take."""


def may_go(things: Iterable[StoredThing], keep: Keep, *, needed: Collection[str], now: float) -> list[str]:
    """Return the names of those that may go, the oldest first.

    Args:
        things: of one kind.
        keep: of this kind.
        needed: names of those that a live task needs.
        now: seconds since the epoch.
    """
    things = sorted(things, key=lambda thing: (thing.used, thing.name))
    excess = 0 if keep.total is None else sum(thing.size for thing in things) - keep.total
    gone = []
    for thing in things:
        if thing.name in needed or now - thing.used < YOUNG:
            continue
        if now - thing.used > keep.age or excess > 0:
            gone.append(thing.name)
            excess -= thing.size
    return gone
