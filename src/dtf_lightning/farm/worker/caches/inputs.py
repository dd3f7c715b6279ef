"""`InputCache` keeps files by the SHA-256 of their content, up to a size; the least recently used ones go first.

Rules that this file guards:

* what lies under a digest has that digest: it is checked on the way in, and the file is there as a whole or not at all;
* a file that somebody holds is not removed;
* of several who want a file that is not there, one fetches it and the others wait for that.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.worker.caches.eviction import Entry, victims
from dtf_lightning.whole_files import is_left_beside, whole_file

log = logging.getLogger(__name__)

DIGEST = re.compile(r"[0-9a-f]{64}")


class InputDamaged(DtfError):
    """What was fetched does not have the digest that it should have."""


class InputCache:
    """Thread-safe. One process uses a folder at a time.

    Args:
        folder: of the cache; what lies in it from before is used.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int, *, clock: Clock | None = None) -> None:
        self._folder, self._limit, self._clock = folder, limit, clock or SystemClock()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._held: Counter[str] = Counter()
        self._fetching: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._entries = {entry.name: entry for entry in self._find()}
        with self._lock:
            self._evict()

    @contextlib.contextmanager
    def hold(self, digest: str, fetch: Callable[[BinaryIO], object]) -> Iterator[Path]:
        """Inside, the file is there, and stays.

        Args:
            digest: SHA-256 in hexadecimal.
            fetch: writes the content into a file, if it is not in the cache.

        Raises `ValueError` for what is no digest, `InputDamaged` if the content has another one, and what `fetch` and the
        disk raise; nothing is kept then.
        """
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"an input is named by the SHA-256 of its content, 64 hexadecimal digits; got {digest!r}")
        self._take(digest, fetch)
        try:
            yield self._folder / digest
        finally:
            with self._lock:
                self._held[digest] -= 1
                self._held += Counter()  # drops those that nobody holds
                self._evict()

    def digests(self) -> frozenset[str]:
        """What is in the cache, for a scheduler that looks where inputs are."""
        with self._lock:
            return frozenset(self._entries)

    @property
    def size(self) -> int:
        """Bytes in the cache."""
        with self._lock:
            return sum(entry.size for entry in self._entries.values())

    def _take(self, digest: str, fetch: Callable[[BinaryIO], object]) -> None:
        with self._changed:
            self._held[digest] += 1  # from now on it stays
            while digest in self._fetching:
                self._changed.wait()
            if digest in self._entries and (self._folder / digest).exists():
                self._use(digest)
                return
            self._fetching.add(digest)
        try:
            self._fetch(digest, fetch)
        except BaseException:
            with self._changed:
                self._held[digest] -= 1
            raise
        finally:
            with self._changed:
                self._fetching.discard(digest)
                self._changed.notify_all()

    def _fetch(self, digest: str, fetch: Callable[[BinaryIO], object]) -> None:
        with whole_file(self._folder / digest, durable=False) as file:  # after a power cut it is looked at anew
            fetch(file)
            file.flush()
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise InputDamaged(
                    f"an input with the SHA-256 {digest} was fetched, but what came has {found}: the store or the way to "
                    "it is damaged; submit the task anew"
                )
            os.fchmod(file.fileno(), 0o400)
        with self._lock:
            self._use(digest)
            self._evict()

    def _use(self, digest: str) -> None:
        """Note that it was used now, also for the next process; `self._lock` is held."""
        path, now = self._folder / digest, self._clock.wall()
        os.utime(path, (now, now))
        self._entries[digest] = Entry(name=digest, size=path.stat().st_size, used=now)

    def _evict(self) -> None:
        for name in victims(self._entries.values(), self._limit, self._held):
            (self._folder / name).unlink(missing_ok=True)
            del self._entries[name]

    def _find(self) -> Iterator[Entry]:
        for path in self._folder.iterdir():
            if DIGEST.fullmatch(path.name):
                status = path.stat()
                yield Entry(name=path.name, size=status.st_size, used=status.st_mtime)
            elif is_left_beside(path):
                path.unlink()
