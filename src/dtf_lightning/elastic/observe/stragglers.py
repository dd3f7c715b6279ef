"""Finds slow workers: compares how long each worker is busy with a step of its own.

In synchronous training all steps take equally long, because quick workers wait for slow ones in the all-reduce. What
tells them apart is the time before it: waiting for data, forward, backward up to the last gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

SLOW = 1.25
"""A worker is slow if it is busy more than this many times as long as the median worker ..."""
LEAST_SHARE = 0.05
"""... and longer by more than this share of a whole step; otherwise no other worker waits for it."""
LOOKS = 3
"""The number of looks in a row that must contradict what is known of a worker before that changes."""
MIN_SECONDS = 10.0
"""The least seconds between the first and the last of these looks."""


@dataclass(frozen=True)
class Straggler:
    """A worker that has become slow, or is no longer slow."""

    worker: str
    busy: float
    usual: float
    """The busy seconds of the median worker (the quicker one of two) in a step."""
    over: bool = False


class StragglerWatch:
    """Compares what all workers measured, look by look; a worker that leaves is forgotten."""

    def __init__(self) -> None:
        self._streaks: dict[str, tuple[int, float]] = {}
        """For each worker, the looks in a row that contradict what is known of it, and when the first of them was."""
        self._slow: set[str] = set()

    def look(self, busy: Mapping[str, float], step: float, now: float) -> list[Straggler]:
        """Return the workers that have just become slow, or stopped being slow.

        `busy` holds each worker's busy seconds in a step, `step` is the seconds of a whole step, `now` is in monotonic
        seconds.
        """
        usual = median_low(busy.values())
        self._slow &= busy.keys()
        self._streaks = {worker: streak for worker, streak in self._streaks.items() if worker in busy}
        found = []
        for worker, seconds in busy.items():
            slow = seconds > SLOW * usual and seconds - usual > LEAST_SHARE * step
            if slow == (worker in self._slow):
                self._streaks.pop(worker, None)
                continue
            looks, since = self._streaks.get(worker, (0, now))
            self._streaks[worker] = (looks + 1, since)
            if looks + 1 >= LOOKS and now - since >= MIN_SECONDS:
                del self._streaks[worker]
                self._slow ^= {worker}
                found.append(Straggler(worker, seconds, usual, over=not slow))
        return found
