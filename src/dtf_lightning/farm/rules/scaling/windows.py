"""Capacity by the clock: a pool's minimum and maximum at certain hours of certain days, such as `mon-fri 08:00-18:00 min=4`. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from dtf_lightning.farm.rules.scaling.observation import PoolLimits

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW = re.compile(
    r"(?P<days>[a-z,-]+) (?P<begin>\d\d:\d\d)-(?P<end>\d\d:\d\d)(?: min=(?P<minimum>\d+))?(?: max=(?P<maximum>\d+))?"
)
EXAMPLE = "mon-fri 08:00-18:00 min=4 max=8"


@dataclass(frozen=True, kw_only=True)
class Window:
    """Hours of days in which other limits hold."""

    days: frozenset[int]
    """0 is Monday."""
    begin: int
    """Minute of the day."""
    end: int
    """The first minute after it: at most `begin` where it ends on the next day."""
    minimum: int | None = None
    maximum: int | None = None

    def holds(self, at: datetime) -> bool:
        """Whether it holds at this local time."""
        minute, day = at.hour * 60 + at.minute, at.weekday()
        if self.begin < self.end:
            return day in self.days and self.begin <= minute < self.end
        return (day in self.days and minute >= self.begin) or ((day - 1) % 7 in self.days and minute < self.end)


def window_of(text: str) -> Window:
    """Return what a text says. Raises `ValueError` with what was expected."""
    found = _WINDOW.fullmatch(" ".join(text.lower().split()))
    if found is None or (found["minimum"] is None and found["maximum"] is None):
        raise ValueError(f"{text!r} is no time of capacity; expected one such as {EXAMPLE!r}")
    minimum, maximum = (None if found[name] is None else int(found[name]) for name in ("minimum", "maximum"))
    return Window(
        days=_days(found["days"], text),
        begin=_minute(found["begin"], text),
        end=_minute(found["end"], text),
        minimum=minimum,
        maximum=maximum,
    )


def limits_at(limits: PoolLimits, windows: Iterable[Window], at: datetime) -> PoolLimits:
    """Return the limits at a local time. Of several windows that hold the last one that names a number counts."""
    for window in windows:
        if window.holds(at):
            limits = replace(
                limits,
                minimum=limits.minimum if window.minimum is None else window.minimum,
                maximum=limits.maximum if window.maximum is None else window.maximum,
            )
    return replace(limits, minimum=min(limits.minimum, limits.maximum))


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last or first) not in DAYS:
            raise ValueError(
                f"{whole!r}: {part!r} are no days; expected some of {', '.join(DAYS)}, such as mon-fri or sat,sun"
            )
        begin, end = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(begin, end + 1 if end >= begin else end + 8)}
    return frozenset(found)


def _minute(text: str, whole: str) -> int:
    hour, minute = map(int, text.split(":"))
    if hour > 24 or minute > 59 or (hour == 24 and minute):
        raise ValueError(f"{whole!r}: {text} is no time of a day; expected 00:00 to 24:00")
    return hour * 60 + minute
