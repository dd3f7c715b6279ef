"""Arrays: one submission of many instances of a command, which come to life a few at a time. Pure.

An array is a task. Its instances are numbered from 0, and begin in that order: below the frontier (`born`) each is a task
like any other, which is tried again and recorded by itself; above it an instance is nothing but a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_ARRAY = 100_000
"""Instances of one array."""
AT_ONCE = 100
"""Instances that come to life in one write: each is a key in it."""
WINDOW = 500
"""Instances of an array that wait for a worker, up to which more come to life."""
INDEX = "DTF_FARM_ARRAY_INDEX"
"""The variable that tells an instance its number."""


def births(born: int, count: int, waiting: int) -> range:
    """Return the numbers of the instances that are to come to life next.

    Args:
        born: those that have.
        count: of the array.
        waiting: those that have come to life and have no worker yet.
    """
    room = max(0, min(AT_ONCE, WINDOW - waiting, count - born))
    return range(born, born + room)


GENERATION, GOODPUT = "generation", "goodput"
_OF_THE_WORLD = (GENERATION, "world_size", "step", "samples_per_second")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tally:
    """How the instances of an array ended."""

    outcomes: Mapping[str, int]
    """Outcome -> how many."""
    exit_code: int | None = None
    """The highest of those that did not complete, as far as it is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of parts of a training, their run's last figures."""

    @classmethod
    def of(cls, outcomes: Mapping[str, int], exit_code: int | None, reports: Iterable[Mapping[str, float]]) -> Tally:
        """Return the tally of instances that have reported these metrics."""
        return cls(outcomes=outcomes, exit_code=exit_code, metrics=together(reports))

    @property
    def completed(self) -> bool:
        """Whether all of them have completed."""
        return set(self.outcomes) <= {"completed"}

    @property
    def reason(self) -> str:
        """One sentence on those that did not complete; "" if there are none."""
        others = {name: number for name, number in sorted(self.outcomes.items()) if name != "completed"}
        if not others:
            return ""
        told = ", ".join(f"{number} {name}" for name, number in others.items())
        return f"{sum(others.values())} of its {sum(self.outcomes.values())} instances did not complete: {told}"


def together(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return a run's figures by what its parts have reported of it; nothing if none has.

    What is the whole world's is that of the part which is furthest: a part that has left, or is frozen, knows older things. The
    goodput is the mean of the parts'.

    Args:
        parts: the figures of each, by the names of `--rdzv-conf progress`; others are passed over.
    """
    told = [part for part in parts if GENERATION in part]
    if not told:
        return {}
    furthest = max(told, key=lambda part: (part[GENERATION], part.get("step", 0.0)))
    figures = {name: furthest[name] for name in _OF_THE_WORLD if name in furthest}
    shares = [part[GOODPUT] for part in told if GOODPUT in part]
    return figures | ({GOODPUT: round(sum(shares) / len(shares), 4)} if shares else {})
