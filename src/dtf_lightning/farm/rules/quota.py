"""Says from the size of etcd's database whether a farm may take new work, and what is to be done about the size. Pure.

| the database's file, against the quota | new work | to do |
|---|---|---|
| below a half | yes | nothing |
| a half or more, and less than `WORTH` of it is in use | yes | defragment |
| three quarters or more | refused | defragment where that gives back something |
| the alarm is on | refused | compact, defragment, and, if there is room then, disarm |

The farm's own writes are transactions inside transactions, which etcd does not count against its quota (`etcd/maintenance.py`):
they go on when the alarm is on, so that what runs is recorded, and nothing but this rule keeps the file from growing past
the quota. The alarm stops leases, so that no coordinator could be elected: it must not stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FULL = 0.75
"""Share of the quota from which on new work is refused."""
HALF = 0.5
WORTH = 0.6
"""Share of the file that may be in use for defragmenting to be worth its pause: each member answers nothing meanwhile."""
RARELY = 600.0
"""Seconds between two defragmentations, while there is no alarm."""
MEBIBYTE = 1 << 20


class Step(Enum):
    """Something to do about the size, in this order."""

    COMPACT = "compact"
    DEFRAGMENT = "defragment"
    DISARM = "disarm"


@dataclass(frozen=True, kw_only=True, slots=True)
class DatabaseSize:
    """Of the largest member; bytes."""

    file: int
    in_use: int
    alarm: bool
    """Whether etcd's alarm for its quota is on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuotaVerdict:
    """What follows from a size."""

    refusal: str
    """Why new work is refused; "": it is taken."""
    steps: tuple[Step, ...]


def judge_size(size: DatabaseSize, quota: int, *, since_defragmented: float) -> QuotaVerdict:
    """Return what follows.

    Args:
        size: as it is.
        quota: etcd's, in bytes.
        since_defragmented: seconds since the last defragmentation; infinity: there was none.
    """
    if size.alarm:
        # Whether the alarm may be switched off is judged again after the others: by `may_disarm`.
        return QuotaVerdict(
            refusal=f"etcd has raised its alarm for space ({_told(size, quota)})",
            steps=(Step.COMPACT, Step.DEFRAGMENT, Step.DISARM),
        )
    full, half = size.file >= FULL * quota, size.file >= HALF * quota
    worth = size.in_use < WORTH * size.file or (full and size.in_use < FULL * quota)
    steps = (Step.DEFRAGMENT,) if half and worth and since_defragmented >= RARELY else ()
    refusal = f"etcd's database is three quarters full ({_told(size, quota)})" if full else ""
    return QuotaVerdict(refusal=refusal, steps=steps)


def may_disarm(size: DatabaseSize, quota: int) -> bool:
    """Whether there is room, so that the alarm would not be raised again by the next write."""
    return size.file < FULL * quota


def _told(size: DatabaseSize, quota: int) -> str:
    return (
        f"its file has {size.file / MEBIBYTE:.1f} MiB of a quota of {quota / MEBIBYTE:.1f} MiB, {size.in_use / MEBIBYTE:.1f} MiB "
        "of it in use"
    )


TOMBSTONE = 200
"""Bytes of etcd's file that an archived task's id takes: 188 of 30,000 of them on etcd 3.5.1, compacted and defragmented."""
SHARE = 0.5
"""Of the quota that ids may take, beside what is alive and what waits to be archived."""


def ids_refusal(tasks_per_second: float, retention: float, quota: int) -> str:
    """Return what to change where the ids of archived tasks would fill etcd; "" where they fit.

    Args:
        tasks_per_second: that end, on average.
        retention: seconds for which an id is remembered.
        quota: etcd's, in bytes.
    """
    num = tasks_per_second * retention
    if num * TOMBSTONE <= SHARE * quota:
        return ""
    fits = SHARE * quota / TOMBSTONE
    return (
        f"{tasks_per_second:.2g} tasks/s, whose ids are remembered for {retention / 86400:.2g} days, are {num / 1e6:.2g} million "
        f"ids of some {TOMBSTONE} bytes: {num * TOMBSTONE / MEBIBYTE:.0f} MiB of a quota of {quota / MEBIBYTE:.0f} MiB, of which they may "
        f"take half. Set `retention.tombstones` to {fits / tasks_per_second / 86400:.2g} days or less (and `retention.ids` below it), "
        f"or give etcd a quota of {num * TOMBSTONE / SHARE / MEBIBYTE:.0f} MiB (`--quota-backend-bytes`, at most 8 GiB) and say so in `etcd.quota`"
    )
