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


class Deadline:
    """The earliest of the moments at which somebody wants to be called: monotonic seconds."""

    def __init__(self, *moments: float | None) -> None:
        self.at: float | None = None
        """`None`: nobody wants to be called."""
        self.bring_forward(*moments)

    def bring_forward(self, *moments: float | None) -> None:
        """Be no later than any of these; `None` among them asks for nothing."""
        self.at = min((moment for moment in (self.at, *moments) if moment is not None), default=None)

    def clear(self) -> None:
        """Nobody wants to be called any more."""
        self.at = None

    def is_due(self, now: float) -> bool:
        """Whether the moment has come; never without one."""
        return self.at is not None and self.at <= now

    def left(self, now: float) -> float | None:
        """Seconds from `now` to the moment, 0 when it has passed; `None` without one."""
        return None if self.at is None else max(0.0, self.at - now)
