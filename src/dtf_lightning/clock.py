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
