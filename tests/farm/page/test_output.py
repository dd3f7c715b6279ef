"""Parts of an output, and where a text stands in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.page import output
from dtf_lightning.farm.page.output import part_after, part_around, part_before, search

OUTPUTS = st.lists(st.sampled_from([b"\n", b"ab", b"c", b"\nline of text\n", b"x" * 30]), max_size=30).map(b"".join)


class Reader:
    """An output in memory, which notes how much was read of it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.read_bytes = 0

    def __call__(self, offset: int, length: int) -> bytes:
        found = self.data[offset : offset + length]
        self.read_bytes += len(found)
        return found


class Gigabyte(Reader):
    """Lines of 16 bytes, of which none is kept, and one that says something."""

    size = 2**30
    needle = 900_000_000

    def __init__(self) -> None:
        super().__init__(b"")

    def __call__(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self.size - offset))
        first = offset % 16
        data = (b"0123456789abcde\n" * (length // 16 + 2))[first : first + length]
        if offset <= self.needle < offset + length - 6:
            at = self.needle - offset
            data = data[:at] + b"Needle" + data[at + 6 :]
        self.read_bytes += length
        return data


@given(OUTPUTS, st.integers(1, 50))
def test_parts_join_forwards_and_backwards(data, limit):
    """Nothing twice, nothing left out; each but the last ends with a line's end if a line fits into a part."""
    read = Reader(data)
    at, told = 0, []
    while at < len(data):
        part = part_after(read, len(data), at, limit=limit)
        assert part.start == at < part.end <= at + limit
        told.append(data[part.start : part.end])
        assert told[-1].endswith(b"\n") or b"\n" not in told[-1] or part.end == len(data)
        at = part.end
    assert b"".join(told) == data
    at, told = len(data), []
    while at > 0:
        part = part_before(read, at, limit=limit)
        assert part.end == at > part.start >= at - limit
        told.insert(0, data[part.start : part.end])
        at = part.start
    assert b"".join(told) == data


@given(OUTPUTS, st.integers(-5, 2000), st.integers(16, 60))
def test_around_a_place(data, at, limit):
    part = part_around(Reader(data), len(data), at, limit=limit)
    assert part.start <= max(0, min(at, len(data)))
    assert at >= len(data) or at < 0 or part.start <= at < part.end


def test_a_part_goes_on_in_its_colour():
    data = b"\x1b[31mred\nstill red\n"
    assert part_after(Reader(data), len(data), data.index(b"still")).html == '<span class="fg1">still red\n</span>'


class TestAGigabyte:
    def test_only_what_is_seen_is_read(self):
        read = Gigabyte()
        for part in (
            part_after(read, read.size, 0),
            part_before(read, read.size),
            part_around(read, read.size, read.size // 2),
        ):
            assert 0 < part.end - part.start <= output.PART
            assert len(part.html) < 2 * output.PART
        assert read.read_bytes < 6 * output.PART

    def test_a_search_goes_on_where_it_was(self):
        """In requests of which each looks through a part, and finds what lies across the border of two blocks."""
        read, at, asked = Gigabyte(), 860_000_000, 0
        while (found := search(read, "needle", at, read.size)).at is None:
            assert found.searched - at <= output.SEARCHED
            at, asked = found.searched, asked + 1
        assert (found.at, asked) == (read.needle, 1)
        assert search(read, "needle", found.searched, found.searched + 10_000).at is None

    def test_across_the_border_of_blocks(self):
        data = b"x" * (1024 * 1024 - 3) + b"Needle" + b"x" * 100
        assert search(Reader(data), "nEEDLE", 0, len(data)).at == 1024 * 1024 - 3


@given(OUTPUTS, st.sampled_from(["a", "ab", "e of", "xx", "nothing like it"]), st.integers(0, 100))
def test_a_search_finds_the_first(data, text, start):
    found = search(Reader(data), text, start, len(data))
    expected = data.find(text.encode(), start)
    assert found.at == (expected if expected >= 0 else None)
    assert found.at is not None or found.searched == max(len(data), 0) or start > len(data)


def test_nothing_to_search_for():
    with pytest.raises(ValueError, match="nothing to search for"):
        search(Reader(b"x"), "", 0, 1)
