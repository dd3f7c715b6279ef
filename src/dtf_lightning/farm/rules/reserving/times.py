"""Reservations by people: which worker is held now, for whom, and what a reservation may be. Pure.

Rules that this file guards:
- From `lead` before its begin a worker gets only what is expected to end before it; from its begin to its end only tasks of
  the reservation's project, or nothing. What runs goes on.
- A worker has one reservation at a time: one that overlaps with another is refused.
- One that can never be met is refused, with what is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """A reservation. Times are seconds since the epoch."""

    name: str
    workers: tuple[str, ...]
    begin: float
    end: float
    lead: float = 0.0
    project: str = ""

    def overlaps(self, begin: float, end: float) -> bool:
        """Whether it is within these times, for a moment at least."""
        return self.begin < end and begin < self.end


@dataclass(frozen=True, kw_only=True)
class Held:
    """How a worker is held."""

    until: float
    """What is expected to end before this may start; once that is over nothing may."""
    project: str = ""
    """Whose tasks may start whatever they take; "": nobody's."""


def held_now(reservations: Iterable[Reserved], now: float) -> dict[str, Held]:
    """Return worker -> how it is held; the earliest reservation counts."""
    found: dict[str, Held] = {}
    for one in sorted(reservations, key=lambda one: (one.begin, one.name)):
        if one.begin - one.lead <= now < one.end:
            project = one.project if now >= one.begin else ""
            for worker in one.workers:
                found.setdefault(worker, Held(until=one.begin, project=project))
    return found


def next_change(reservations: Iterable[Reserved], now: float) -> float:
    """Return when another worker is held than now, or in another way; infinite: never."""
    times = (time for one in reservations for time in (one.begin - one.lead, one.begin, one.end))
    return min((time for time in times if time > now), default=math.inf)


def choose(
    number: int, able: Sequence[str], present: Sequence[Reserved], begin: float, end: float, busy: Iterable[str]
) -> tuple[tuple[str, ...], str]:
    """Return so many workers that have no other reservation then, idle ones first, or why there are too few.

    Args:
        able: workers that could do what they are reserved for.
        busy: those of them that have a task now.
    """
    taken = {worker for one in present if one.overlaps(begin, end) for worker in one.workers}
    occupied = set(busy)
    free = sorted((worker for worker in able if worker not in taken), key=lambda worker: (worker in occupied, worker))
    if len(able) < number:
        return (), f"{number} workers are wanted, and {len(able)} of the farm's could do it"
    if len(free) < number:
        return (
            (),
            f"{number} workers are wanted, and {len(able) - len(free)} of the {len(able)} that could do it are reserved then",
        )
    return tuple(free[:number]), ""


def overlap(workers: Iterable[str], present: Iterable[Reserved], begin: float, end: float) -> str:
    """Say which of these workers is reserved already, and by what; "" if none is."""
    wanted = set(workers)
    for one in present:
        both = sorted(wanted & set(one.workers))
        if both and one.overlaps(begin, end):
            return f"{both[0]} is reserved already then, by {one.name}"
    return ""
