"""What a shard says comes out as it went in."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.pytest_runs import lines
from dtf_lightning.farm.pytest_runs.lines import Reader, unpacked
from dtf_lightning.farm.pytest_runs.worker_side import runner

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text().filter(lambda name: name != lines.TUPLE), inner, max_size=3)
    ),
    max_leaves=8,
)
NOISE = st.binary(max_size=30).filter(lambda data: lines.MARK[:1] not in data)


class Written:
    """A pipe's end, as `os.write` knows it; `noise`: what others write behind each piece."""

    def __init__(self, patch, noise):
        self.data, self.pieces = b"", []
        self._noise = iter(noise)
        patch.setattr(os, "write", self.write)

    def write(self, file, data):
        self.pieces.append(data)
        self.data += data + next(self._noise, b"")
        return len(data)


@given(st.lists(VALUES, min_size=1, max_size=3), st.lists(NOISE, max_size=5), st.lists(st.integers(1, 50), max_size=20))
def test_as_it_went_in(said, noise, sizes):
    """Through small pieces with other output between them, read in any portions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "PIECE", 7)
        written = Written(patch, noise)
        channel = runner.Channel(-1)
        for value in said:
            channel.say("x", value=value)
    reader, heard, data = Reader(), [], written.data
    for size in [*sizes, len(data)]:
        heard += reader.add(data[:size])
        data = data[size:]
    assert [unpacked(line)["value"] for line in heard] == said
    assert reader.stray == b"".join(noise[: len(written.pieces)]).decode(errors="replace").strip()[-lines.KEPT :]


def test_a_piece_is_written_at_once():
    """A pipe takes 4096 bytes at once; with more, what others write could get into a piece."""
    with pytest.MonkeyPatch.context() as patch:
        written = Written(patch, [])
        runner.Channel(-1).say("x", value="\n\x1e" * 10_000)
    assert max(map(len, written.pieces)) <= 4096
    assert (runner.MARK, runner.TUPLE) == (lines.MARK, lines.TUPLE)
    assert len(Reader().add(written.data)) == 1


def test_what_json_cannot_hold_is_told_in_words():
    assert runner.packed({1: {2}, "path": Path("a/b"), "t": ()}) == {"1": "{2}", "path": "a/b", "t": {"()": []}}
    assert math.isnan(runner.packed(math.nan))


def test_our_folder_is_in_the_place_of_theirs():
    """In every text, however deep, and not at all where theirs is not known."""
    told = {"/w/1": [{"()": ["/w/1/test.py", 3]}], "x": "at /w/1 and /w/2"}
    assert unpacked(told, "/w/1", "/home") == {"/home": [("/home/test.py", 3)], "x": "at /home and /w/2"}
    assert unpacked("/w/1", "", "/home") == "/w/1"
