"""Time as a parameter: the shell takes a `Clock`, the core takes `now`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time. Seconds, as floats."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary point; never goes back. For durations and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch (UTC). For records that people and other machines read."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def utc_text(wall: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, for messages: `2026-01-31T12:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))
