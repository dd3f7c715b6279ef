"""Secrets in a stream, against masking the whole text at once."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.worker.keeper.masking import MASK, Masker, spellings

texts = st.text("abx/\n", min_size=4, max_size=8)


def whole(secrets: list[str], data: bytes) -> bytes:
    """The slow and obvious way: at every place the longest secret that is there."""
    found = {spelling for secret in secrets for spelling in spellings(secret)}
    out, position = b"", 0
    while position < len(data):
        here = max((it for it in found if data.startswith(it, position)), key=len, default=None)
        out += data[position : position + 1] if here is None else MASK
        position += 1 if here is None else len(here)
    return out


@given(st.lists(texts, min_size=1, max_size=4), st.lists(st.text("abx/\n", max_size=9), max_size=8))
def test_however_it_is_cut(secrets, pieces):
    masker = Masker(secrets)
    out = b"".join([*(masker.add(piece.encode()) for piece in pieces), masker.end()])
    assert out == whole(secrets, "".join(pieces).encode())


@given(st.lists(texts, min_size=1, max_size=3), st.lists(st.sampled_from(["a", "ab", "zz", "\n"]), max_size=8))
def test_only_what_may_become_a_secret_is_held_back(secrets, pieces):
    masker = Masker(secrets)
    out = b"".join(masker.add(piece.encode()) for piece in pieces)
    held = masker.end()
    beginnings = {it[:end] for secret in secrets for it in spellings(secret) for end in range(1, len(it))}
    assert held == b"" or any(held.endswith(it) for it in beginnings)
    assert out + held == whole(secrets, "".join(pieces).encode()) or MASK in held


@pytest.mark.parametrize(
    "printed",
    [
        "p@ss word/1",
        "p%40ss%20word/1",
        "p%40ss%20word%2F1",
        base64.b64encode(b"p@ss word/1").decode(),
    ],
)
def test_the_ways_to_print_a_secret(printed):
    masker = Masker(["p@ss word/1"])
    text = masker.add(f"<{printed}>".encode()) + masker.end()
    assert re.fullmatch(rb"<\*\*\*=*>", text)


def test_the_lines_of_a_secret():
    """A private key is printed line by line, or as JSON."""
    key = "-----BEGIN-----\nabcdefgh\n-----END-----\n"
    masker = Masker([key])
    assert masker.add(b"1: abcdefgh\n" + key.replace("\n", "\\n").encode() + b"\n") + masker.end() == b"1: ***\n***\n"


def test_short_secrets_are_not_masked():
    """They would be found everywhere."""
    masker = Masker(["abc", ""])
    assert masker.add(b"abc") == b"abc"
