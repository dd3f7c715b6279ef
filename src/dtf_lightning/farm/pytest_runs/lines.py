"""What a shard says in its output: lines of JSON between whatever else it prints. Pure.

A line travels in pieces, so that each is written at once (`PIPE_BUF`, pipe(7)) and nothing that others print gets into it:

    MARK  "+" piece  newline        there is more
    MARK  "." piece  newline        this was the last of it

Rule that this file guards: what `runner.py` has said comes out as it went in, tuples among it, however the output is cut on
its way, and whatever is printed between pieces. What is no line of ours is kept as text.
"""

from __future__ import annotations

import json
from typing import Any

MARK = b"\x1edtf:"
"""Begins a piece. `runner.py` writes the same; a test holds the two together."""
TUPLE = "()"
"""Key of an object that stands for a tuple: JSON has none, and reports of skipped tests are one."""
KEPT = 4000
"""Bytes of other output that are kept, the last."""


class Reader:
    """Of one attempt's output."""

    def __init__(self) -> None:
        self._rest = b""
        self._pieces: list[bytes] = []
        self._stray = b""

    @property
    def stray(self) -> str:
        """The end of what was printed beside our lines."""
        return (self._stray + self._rest)[-KEPT:].decode(errors="replace").strip()

    def add(self, data: bytes) -> list[dict[str, Any]]:
        """Return the lines that are whole now."""
        self._rest += data
        said: list[dict[str, Any]] = []
        while True:
            before, mark, after = self._rest.partition(MARK)
            if not mark:
                keep = _begun(before)
                self._keep(before[: len(before) - keep])
                self._rest = before[len(before) - keep :]
                return said
            piece, newline, behind = after.partition(b"\n")
            if not newline:
                self._keep(before)
                self._rest = mark + after
                return said
            self._keep(before)
            self._rest = behind
            self._pieces.append(piece[1:])
            if piece[:1] == b".":
                said.append(json.loads(b"".join(self._pieces)))
                self._pieces.clear()

    def _keep(self, text: bytes) -> None:
        self._stray = (self._stray + text)[-KEPT:]


def _begun(text: bytes) -> int:
    """Return how many of the last bytes may be the beginning of a mark."""
    return next((size for size in range(len(MARK) - 1, 0, -1) if text.endswith(MARK[:size])), 0)


def unpacked(value: Any, theirs: str = "", ours: str = "") -> Any:
    """Return a value as it was before it became JSON, with our folder in the place of theirs in every text."""
    if isinstance(value, str):
        return value.replace(theirs, ours) if theirs and theirs in value else value
    if isinstance(value, list):
        return [unpacked(one, theirs, ours) for one in value]
    if isinstance(value, dict):
        if value.keys() == {TUPLE}:
            return tuple(unpacked(one, theirs, ours) for one in value[TUPLE])
        return {unpacked(key, theirs, ours): unpacked(one, theirs, ours) for key, one in value.items()}
    return value
