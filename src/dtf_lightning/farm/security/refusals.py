"""How refusals are written down: the first of each minute one by one, the others as a number. Pure.

Rule: a stranger who is refused all the time makes `EACH` lines a minute and one with their number, and no more.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

EACH = 10
MINUTE = 60.0


class Refusals:
    """Those of one coordinator."""

    def __init__(self) -> None:
        self._began = 0.0
        self._number = 0
        self._counted: Counter[int] = Counter()

    def refused(self, now: float, status: int, facts: dict[str, Any]) -> list[dict[str, Any]]:
        """Somebody was refused. Returns the lines to write. `now`: seconds since the epoch."""
        lines = self.past(now)
        if not self._number:
            self._began = now
        self._number += 1
        if self._number <= EACH:
            return [*lines, {**facts, "status": status}]
        self._counted[status] += 1
        return lines

    def past(self, now: float) -> list[dict[str, Any]]:
        """Return the line about the last minute's others, if it is over and there were any."""
        if not self._number or 0 <= now - self._began < MINUTE:
            return []
        return self.rest()

    def rest(self) -> list[dict[str, Any]]:
        """Return the line about others that are counted so far, and begin a new minute."""
        counted = {str(status): number for status, number in sorted(self._counted.items())}
        began, self._number, self._counted = self._began, 0, Counter()
        return [{"refused": counted, "since": round(began, 3)}] if counted else []
