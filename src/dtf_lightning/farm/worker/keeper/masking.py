"""`Masker` replaces secrets in a stream of bytes, wherever the stream is cut.

Rules that this file guards:

* whatever pieces a text comes in, the pieces that go out make the text in which every secret is replaced;
* nothing is held back but what may be the beginning of a secret, and that only until more comes or the end.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from dtf_lightning.farm.rules.needs import SHORTEST_SECRET

MASK = b"***"
SHORTEST = SHORTEST_SECRET


def spellings(secret: str) -> set[bytes]:
    """The ways in which a secret may be printed: as it is, its lines, as JSON, in XML, in a URL, in base64."""
    texts = [secret, *(line.strip() for line in secret.splitlines())]
    found = {
        spelling
        for text in texts
        for spelling in (
            text,
            json.dumps(text)[1:-1],
            escape(text),
            escape(text, quote=False),
            quote(text),
            quote(text, safe=""),
        )
    }
    encoded = {spelling.encode(errors="surrogateescape") for spelling in found}
    encoded.add(base64.b64encode(secret.encode(errors="surrogateescape")).rstrip(b"="))
    return {spelling for spelling in encoded if len(spelling) >= SHORTEST}


class Masker:
    """Mask secrets of at least `SHORTEST` bytes."""

    def __init__(self, secrets: Iterable[str]) -> None:
        # The longest first: of two that begin at one place, a regular expression takes the first.
        self._spellings = sorted(
            {text for secret in secrets for text in spellings(secret)}, key=lambda text: (-len(text), text)
        )
        self._pattern = re.compile(b"|".join(map(re.escape, self._spellings))) if self._spellings else None
        self._by_first_byte: dict[int, list[bytes]] = {}
        for text in self._spellings:
            self._by_first_byte.setdefault(text[0], []).append(text)
        self._longest = len(self._spellings[0]) if self._spellings else 0
        self._held = b""
        self.num_masked = 0
        """How many were replaced so far."""

    def add(self, data: bytes) -> bytes:
        """What may go out now that `data` has come."""
        if self._pattern is None:
            return data
        text, position = self._held + data, 0
        out: list[bytes] = []
        while True:
            undecided = self._undecided(text, position)
            match = self._pattern.search(text, position)
            if match is None or match.start() >= undecided:
                self._held = text[undecided:]
                return b"".join([*out, text[position:undecided]])
            out += [text[position : match.start()], MASK]
            self.num_masked += 1
            position = match.end()

    def end(self) -> bytes:
        """What was held back; nothing more comes."""
        held, self._held = self._held, b""
        if self._pattern is None:
            return held
        masked, number = self._pattern.subn(MASK, held)
        self.num_masked += number
        return masked

    def _undecided(self, text: bytes, position: int) -> int:
        """The first place from which the rest of the text is the beginning of a longer secret."""
        for start in range(max(position, len(text) - self._longest + 1), len(text)):
            for spelling in self._by_first_byte.get(text[start], ()):
                if len(spelling) > len(text) - start and spelling.startswith(text[start:]):
                    return start
        return len(text)
