"""The file of what was asked for and refused: JSON lines, each bound to the one before it.

Rules that this file guards:
- A line ends with `chain`: HMAC-SHA256 (RFC 2104) of the line before's `chain` and of this line without it, under a key that is
  derived from the farm's token (HKDF, RFC 5869). Who has the file and not the token cannot change, add, move or remove a line
  unseen, but for those at the end: whoever wants to notice that keeps the last `chain` elsewhere.
- A line is in the file as a whole, or a rest of it stands in a line of its own and belongs to no chain: the disk was full, or
  the process was killed in mid-write.
- Several processes that append to one file keep one chain: each looks, under a lock, whether the file has grown.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.security.keys import derived_key
from dtf_lightning.farm.security.refusals import Refusals

_LINK = re.compile(r', "chain": "([0-9a-f]{64})"\}')
_LINK_LENGTH = len(', "chain": ""}') + 64
_TAIL = 1 << 16
"""Bytes of the end of a file in which its last line is looked for: no line is longer."""
MAX_BREAKS = 20
"""Places that a verdict names."""


def audit_key(token: str) -> bytes:
    """Return the key of a farm's audit files. `token`: the farm's own."""
    return derived_key(token, b"dtf farm: audit file")


def _link(key: bytes, before: str, line: str) -> str:
    return hmac.digest(key, f"{before}{line}".encode(), "sha256").hex()


class AuditFile:
    """One JSON object for each change that was asked for. Thread-safe.

    Args:
        key: from `audit_key`.
    """

    def __init__(self, path: Path, key: bytes, clock: Clock | None = None) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        self._key = key
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._refusals = Refusals()
        self._before = ""
        self._size = 0

    def refused(self, status: int, **facts: object) -> None:
        """Note a refusal: in a line of its own, or as one of many. Raises `OSError` if the disk does not take it."""
        for line in self._refusals.refused(self._clock.wall(), status, facts):
            self.write(**line)

    def write(self, **facts: object) -> None:
        """Append one line. Raises `OSError` if the disk does not take it."""
        line = json.dumps({"time": round(self._clock.wall(), 3), **facts})
        with self._lock, self._alone():
            size = os.fstat(self._file).st_size
            torn = b""
            if size != self._size:  # at the start, after another process, or after a write that failed
                self._before, torn = self._end(size)
            link = _link(self._key, self._before, line)
            data = torn + f'{line[:-1]}, "chain": "{link}"}}\n'.encode()
            if os.write(self._file, data) < len(data):
                raise OSError("the disk is full: the audit file has not taken a whole line")
            self._before, self._size = link, size + len(data)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            for line in self._refusals.rest():
                self.write(**line)
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        locked = False
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._file, fcntl.LOCK_EX)
            locked = True
        try:
            yield
        finally:
            if locked:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def _end(self, size: int) -> tuple[str, bytes]:
        """Return the last link, and what has to be written before the next line can begin."""
        tail = os.pread(self._file, _TAIL, max(0, size - _TAIL))
        lines = tail.split(b"\n")
        links = (_split(line.decode(errors="replace")) for line in reversed(lines))
        return next((link for _, link in links if link), ""), b"\n" if lines[-1] else b""


def _split(line: str) -> tuple[str, str]:
    """Return a line without its link, and the link; "": it has none."""
    found = _LINK.fullmatch(line[-_LINK_LENGTH:])
    return (line[:-_LINK_LENGTH] + "}", found.group(1)) if found else (line, "")


@dataclass
class Verdict:
    """What an audit file's chain tells."""

    lines: int = 0
    """Whole lines, with those of before there was a chain."""
    unchained: int = 0
    """Of these the ones at the beginning that have no link: an earlier release wrote them."""
    torn: int = 0
    """Rests of lines that were never written to their end."""
    first: float | None = None
    """Unix time of the first line."""
    last: float | None = None
    link: str = ""
    """Of the last line."""
    breaks: list[str] = field(default_factory=list)
    """What is wrong, each with its line; the first `MAX_BREAKS`."""
    links: set[str] = field(default_factory=set, repr=False)

    def broken(self, told: str) -> None:
        """Note what is wrong."""
        if len(self.breaks) < MAX_BREAKS:
            self.breaks.append(told)


def verify(path: Path, keys: Sequence[bytes]) -> Verdict:
    """Look whether an audit file is as it was written, but for what may miss at its end. Raises `OSError`.

    Args:
        keys: of the farm's token, and of those that it had before.
    """
    verdict, before, good = Verdict(), "", 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            text, link = _split(line.rstrip("\n"))
            facts = _facts(text)
            if not link and facts is None:
                verdict.torn += 1
                continue
            verdict.lines += 1
            when = facts.get("time") if facts is not None else None
            if isinstance(when, int | float):
                verdict.first, verdict.last = when if verdict.first is None else verdict.first, when
            if not link:
                if before:
                    verdict.broken(f"line {number} has no link to line {good}: it was added, or its link was removed")
                else:
                    verdict.unchained += 1
                continue
            if not any(hmac.compare_digest(_link(key, before, text), link) for key in keys):
                after = f"line {good}" if good else "the beginning"
                verdict.broken(
                    f"line {number} does not follow {after}: it was changed, or lines before it were changed, moved or removed"
                )
            before, good = link, number
            verdict.links.add(link)
    verdict.link = before
    return verdict


def _facts(text: str) -> dict[str, object] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None
