"""When a schedule submits its plan, and when it does not. Pure.

Rules that this file guards:
- Of the times that came since the last one that was decided on, only the latest counts; how many went before it is told. So a
  time is decided on once, in its order, and a farm that was away for a day catches up once.
- A schedule that is paused decides nothing.
- Where its last run still goes on, `skip` decides not to submit for the time that has come, `queue` waits and submits for
  the latest time that has come when that run has ended.
- A clock that goes back decides nothing again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

AfterTime = Callable[[float], float | None]
"""Returns the first time of a schedule after a moment, both in seconds since the epoch; `None`: there is none."""

COUNTED = 1000
"""Times that went by which are counted one by one: of more it is only told that there were more."""
CLOSEST = 1.0
"""Seconds below which no two times of a schedule lie apart."""


class Overlap(Enum):
    """What a schedule does at a time at which its last run still goes on."""

    SKIP = "skip"
    QUEUE = "queue"


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """A time that has come."""

    time: float
    """Seconds since the epoch."""
    missed: int = 0
    """Times before it that nobody decided on; with `COUNTED` of them there may be more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is to be written: that the plan is submitted for a time, or that it is not."""

    due: Due
    submits: bool


def latest_due(after: AfterTime, decided: float, now: float) -> Due | None:
    """Return the latest time behind `decided` and not behind `now`; `None` if there is none."""
    found: float | None = None
    number = 0
    following = after(decided)
    while following is not None and following <= now:
        found, number = following, number + 1
        if number > COUNTED:
            return Due(time=_latest(after, found, now), missed=COUNTED)
        following = after(found)
    return None if found is None else Due(time=found, missed=number - 1)


def _latest(after: AfterTime, found: float, now: float) -> float:
    """Return the latest time up to `now`, by halving what lies between; `found` is one."""
    low, high = found, now  # the time after `low` has come if there is one; that after `high` has not
    while high - low > CLOSEST / 2:
        middle = (low + high) / 2
        following = after(middle)
        if following is not None and following <= now:
            low = middle
        else:
            high = middle
    following = after(low)
    return following if following is not None and following <= now else found


def decide(
    after: AfterTime, *, decided: float, paused: bool, overlap: Overlap, goes_on: bool, now: float
) -> Decision | None:
    """Return what is to be decided now; `None`: nothing.

    Args:
        after: the schedule's times.
        decided: up to which moment it is decided what was submitted.
        goes_on: whether a run of the schedule still goes on.
        now: seconds since the epoch.
    """
    if paused or (goes_on and overlap is Overlap.QUEUE):
        return None
    due = latest_due(after, decided, now)
    return None if due is None else Decision(due=due, submits=not goes_on)


def next_time(after: AfterTime, *, decided: float, paused: bool, now: float) -> float | None:
    """Return the next time that is to come; `None` for a schedule that is paused, or has none."""
    return None if paused else after(max(decided, now))
