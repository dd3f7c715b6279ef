"""Which keys hold the tombstones of old ids: an id begins with its time, so a moment is a place in their order. Pure.

A store reads by prefixes. All ids before a moment begin with one of a few dozen prefixes, most of which nobody has.
"""

from __future__ import annotations

from collections.abc import Iterator

from dtf_lightning.farm.record.task_id import new_task_id

DIGITS = 7
"""Hexadecimal digits of an id by which it is placed: 28 of the 48 bits of its milliseconds, so 1,049 s at a time."""


def prefixes_before(wall: float) -> Iterator[str]:
    """Yield prefixes of ids so that every id made before `wall` has one of them, but for the last `STEP` seconds.

    No id that was made later has one. `wall`: seconds since the epoch.
    """
    place = new_task_id(max(wall, 0.0), 0)[:DIGITS]
    for length, digit in enumerate(place):
        for smaller in range(int(digit, 16)):
            yield f"{place[:length]}{smaller:x}"


STEP = (1 << (48 - 4 * DIGITS)) / 1000
"""Seconds that ids with the same first digits span."""
