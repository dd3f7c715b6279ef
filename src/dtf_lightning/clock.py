"""`Clock` makes time a parameter: code with threads and I/O takes a `Clock`, pure functions take `now`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

POLL = 0.02
"""Seconds between two checks of a file or a process, where there is no event to wait for."""


class Clock(Protocol):
    """Tell the time, in seconds as floats."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary point, which never go back. For durations and deadlines."""
        ...

    def wall(self) -> float:
        """Return the seconds since the epoch (UTC). For records that people and other machines read."""
        ...


class SystemClock:
    """Tell the time of the machine's clock."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


def poll_until(
    condition: Callable[[], T],
    deadline: float,
    what: str | Callable[[], str],
    *,
    interval: float = POLL,
    clock: Clock = SystemClock(),  # noqa: B008  (it has no state)
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """Return the first true value of `condition()`. For conditions without an event: where there is one, wait for that.

    Args:
        condition: called at least once, and once more when the time is over.
        deadline: seconds from now.
        what: text that says what is waited for, or a function that returns it, called only when the time is over.
        interval: seconds between two calls of `condition`.
        clock: tells the time.
        pause: waits for the given number of seconds; may raise, to end the wait.

    Raises `TimeoutError` if the condition does not hold within the deadline, and what `condition` and `pause` raise.
    """
    end = clock.monotonic() + deadline
    while True:
        late = clock.monotonic() >= end
        if value := condition():
            return value
        if late:
            raise TimeoutError(f"waited {deadline:g} s for {what if isinstance(what, str) else what()}")
        pause(interval)


def utc_text(wall: float) -> str:
    """Return seconds since the epoch as ISO 8601 text in UTC, for messages: `2026-01-31T12:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(wall))


class Deadline:
    """Keep the earliest of several moments at which work is due, in monotonic seconds."""

    def __init__(self, *moments: float | None) -> None:
        self.at: float | None = None
        """The earliest moment, in monotonic seconds; `None` if no work is due."""
        self.bring_forward(*moments)

    def bring_forward(self, *moments: float | None) -> None:
        """Move the deadline forward to the earliest of these moments, if that is earlier; `None` is ignored."""
        self.at = min((moment for moment in (self.at, *moments) if moment is not None), default=None)

    def clear(self) -> None:
        """Remove the deadline: no work is due."""
        self.at = None

    def is_due(self, now: float) -> bool:
        """Tell whether the moment has come; false without one."""
        return self.at is not None and self.at <= now

    def left(self, now: float) -> float | None:
        """Return the seconds from `now` to the moment, 0 if it has passed; `None` without one."""
        return None if self.at is None else max(0.0, self.at - now)
