"""Time as a parameter: the shell takes a `Clock`, the core takes `now`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")

POLL = 0.02
"""Seconds between two looks at a file or at a process, where there is no event to wait for."""


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


def poll_until(
    condition: Callable[[], T],
    deadline: float,
    what: str | Callable[[], str],
    *,
    interval: float = POLL,
    clock: Clock = SystemClock(),  # noqa: B008  (it has no state)
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """The first true value of `condition()`. For what nothing announces: where there is an event, wait for the event.

    Args:
        condition: is looked at once at least, and once more when the time is over.
        deadline: seconds from now.
        what: is waited for; or makes that text when it has not come, with what there is instead.
        interval: seconds between two looks.
        pause: waits for so many seconds; may raise, to end the wait.

    Raises `TimeoutError` when the condition does not hold within the deadline, and what it raises itself.
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
