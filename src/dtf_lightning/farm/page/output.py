"""Parts of an attempt's output for a browser that shows some of it: of a gigabyte only what is looked at is read and sent.

A part begins where a line begins and ends where one ends, as far as lines are shorter than a part. Places are offsets in
bytes from the output's beginning.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from dtf_lightning.farm.page.ansi import style_after, to_html

PART = 64 * 1024
"""Bytes of a part, at most."""
SEARCHED = 32 * 1024 * 1024
"""Bytes that one search looks through, at most: a tenth of a second; the page asks again for the rest."""
_BLOCK = 1024 * 1024
_BEFORE = 4096
"""Bytes before a part in which is looked for the colour that it begins with."""

Read = Callable[[int, int], bytes]
"""Returns up to so many (second) bytes from an offset (first) on."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some of an output."""

    start: int
    end: int
    html: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has found: `at` is the offset of the first match, `None` if there is none up to `searched`."""

    at: int | None
    searched: int


def part_after(read: Read, size: int, at: int, mark: str = "", *, limit: int = PART) -> Part:
    """Return the part of an output of `size` bytes that begins at an offset."""
    start = min(max(at, 0), size)
    data = read(start, min(limit, size - start))
    if start + len(data) < size:
        data = data[: data.rfind(b"\n") + 1] or data
    return _part(read, start, data, mark)


def part_before(read: Read, at: int, mark: str = "", *, limit: int = PART) -> Part:
    """Return the part that ends at an offset."""
    start = max(0, at - limit)
    data = read(start, at - start)
    if start > 0:
        line = data.find(b"\n", 0, len(data) - 1) + 1  # a newline at the very end begins no line of this part
        start, data = start + line, data[line:]
    return _part(read, start, data, mark)


def part_around(read: Read, size: int, at: int, mark: str = "", *, limit: int = PART) -> Part:
    """Return a part in which an offset lies, with some lines before it."""
    above = part_before(read, min(max(at, 0), size), limit=limit // 8)
    part = part_after(read, size, above.start, mark, limit=limit)
    # A line longer than a part is not begun where another could be shown whole: then the place is not in it.
    return part if at < part.end or at >= size else part_after(read, size, at, mark, limit=limit)


def search(read: Read, text: str, start: int, size: int, *, limit: int = SEARCHED) -> Found:
    """Return where a text first stands from an offset on, small and capital letters (of ASCII) alike.

    What was written is searched: a text in which a colour changes is not found. Raises `ValueError` for an empty text.
    """
    if not text:
        raise ValueError("there is nothing to search for")
    wanted = text.encode()
    pattern = re.compile(re.escape(wanted), re.IGNORECASE)
    position, end = max(start, 0), min(size, max(start, 0) + limit)
    while position < end:
        block = read(position, min(_BLOCK, end - position) + len(wanted) - 1)
        if (found := pattern.search(block)) is not None:
            return Found(at=position + found.start(), searched=position + found.end())
        if not block:
            break
        position += min(_BLOCK, end - position)
    return Found(at=None, searched=max(position, end) if position < end else end)


def _part(read: Read, start: int, data: bytes, mark: str) -> Part:
    before = max(0, start - _BEFORE)
    style = style_after(read(before, start - before)) if before < start else style_after(b"")
    return Part(start=start, end=start + len(data), html=to_html(data, style, mark))
