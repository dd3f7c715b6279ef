"""When devices of a training were away: one line for each part, one bar from leaving to coming back. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from dtf_lightning.farm.record.task_id import array_and_index

WIDTH, LEFT, RIGHT, LINE, EDGE = 760, 110, 12, 22, 10
"""Of the whole drawing, of its margins, and the height of one part's line, in pixels."""
PARTS = 40
"""That are drawn, those with the latest borrowings."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One borrowing."""

    x: float
    y: float
    width: float
    open: bool
    """Whether the device has not come back yet."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Lane:
    """A part."""

    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class BorrowingsDrawing:
    """Places in pixels, from the upper left corner. `start` and `end`: ISO 8601, of the whole width."""

    width: int
    height: int
    left: int
    bars: tuple[Bar, ...]
    lanes: tuple[Lane, ...]
    start: str
    end: str


def draw_borrowings(borrowings: Sequence[Mapping[str, Any]], now: str) -> BorrowingsDrawing | None:
    """Return the drawing; `None` where nothing was borrowed.

    Args:
        borrowings: as the API shows them: `part`, `left`, `back` (or `None`), `wanted_by`; times are ISO 8601.
        now: ISO 8601; where a borrowing ends that has not ended.
    """
    told = [one for one in borrowings if one.get("left")]
    if not told:
        return None
    times = [_seconds(one["left"]) for one in told] + [_seconds(one["back"] or now) for one in told]
    first, last = min(times), max(times)
    span = max(last - first, 1.0)
    newest = sorted(told, key=lambda one: _seconds(one["left"]), reverse=True)
    parts = sorted(dict.fromkeys(str(one["part"]) for one in newest[: 10 * PARTS]), key=number_of)[:PARTS]
    heights = {part: EDGE + LINE * number for number, part in enumerate(parts)}
    bars = []
    for one in told:
        if str(one["part"]) not in heights:
            continue
        start, end = _seconds(one["left"]), _seconds(one["back"] or now)
        x = LEFT + (WIDTH - LEFT - RIGHT) * (start - first) / span
        width = (WIDTH - LEFT - RIGHT) * max(end - start, 0.0) / span
        bars.append(
            Bar(
                x=round(x, 1), y=heights[str(one["part"])] + 3, width=round(max(width, 2.0), 1), open=not one["back"],
                text=f"part {number_of(str(one['part']))}: {end - start:.0f} s for {one['wanted_by']}",
            )
        )  # fmt: skip
    return BorrowingsDrawing(
        width=WIDTH,
        height=2 * EDGE + LINE * len(parts),
        left=LEFT,
        bars=tuple(bars),
        lanes=tuple(Lane(y=height + LINE / 2 + 4, text=f"part {number_of(part)}") for part, height in heights.items()),
        start=min(told, key=lambda one: _seconds(one["left"]))["left"],
        end=max((one["back"] or now for one in told), key=_seconds),
    )


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def number_of(part: str) -> int:
    """Return the number of a training's part, from 0, by its id; -1 for an id that is none of a part."""
    found = array_and_index(part)
    return -1 if found is None else found[1]
