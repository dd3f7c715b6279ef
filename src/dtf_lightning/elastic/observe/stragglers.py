"""Who is slow: workers compared by how long they are busy with a step of their own.

In synchronous training all steps take equally long, because the quick wait for the slow in the all-reduce. What tells
them apart is the time before it: waiting for data, forward, backward up to the last gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median_low

SLOW = 1.25
"""A worker is slow that is busy this much longer than the median worker ..."""
LEAST_SHARE = 0.05
"""... and by at least this share of a whole step: else it holds nobody up."""
LOOKS = 3
"""In a row that make a straggler, or end one."""
MIN_SECONDS = 10.0
"""And for so long."""


@dataclass(frozen=True)
class Straggler:
    """A worker that has become slow, or is no more."""

    worker: str
    busy: float
    usual: float
    """Of the median worker (the quicker one of two); seconds of a step."""
    over: bool = False


class StragglerWatch:
    """Fed with what all workers measured; a worker that leaves is forgotten."""

    def __init__(self) -> None:
        self._streaks: dict[str, tuple[int, float]] = {}
        """By worker: looks in a row that contradict what is known of it, and when the first was."""
        self._slow: set[str] = set()

    def look(self, busy: Mapping[str, float], step: float, now: float) -> list[Straggler]:
        """What is new. `busy`: seconds of a step by worker, `step`: of a whole one, `now`: monotonic seconds."""
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
