"""Logs of attempts: told while they grow, in pieces with offsets, and kept until somebody has stored them.

Rules that this file guards:

* a slow listener holds up logs, and nothing else: logs are told in a thread of their own;
* a piece has at most `LARGEST` bytes; a smaller one than `SMALLEST` is told only once it is `LINGER` seconds old, or is
  the last one;
* each byte is told once and in order by one worker process, and again from what was stored by the next one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.farm.worker.folders import AttemptFolder, WorkerFolders
from dtf_lightning.farm.worker.orders import AttemptOutput
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

SMALLEST, LARGEST = 1 << 16, 1 << 18
"""Bytes of a piece."""
LINGER = 0.1
"""Seconds."""
JOIN_TIMEOUT = 5.0
"""Seconds that `close` gives a listener that is just being told."""


@dataclass
class _Followed:
    """One log. `size`: bytes in it; `told`: bytes that were told; `since`: when the first of the others came."""

    folder: AttemptFolder
    told: int
    size: int
    since: float
    ended: bool = False


class LogTeller:
    """Tell what comes into logs. Thread-safe.

    Args:
        tell: is called in a thread of this object; may take its time. What it raises is logged.
    """

    def __init__(self, tell: Callable[[AttemptOutput], object]) -> None:
        self._tell = tell
        self._changed = threading.Condition()
        self._logs: dict[str, _Followed] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="farm-logs", daemon=True)
        self._thread.start()

    def follow(self, folder: AttemptFolder, told: int = 0) -> None:
        """Tell this log from offset `told` on."""
        with self._changed:
            self._logs[folder.name] = _Followed(folder, told, told, time.monotonic())

    def grown(self, name: str, size: int) -> None:
        """The log has this many bytes now."""
        with self._changed:
            followed = self._logs.get(name)
            if followed is None or size <= followed.size:
                return
            if followed.told == followed.size:
                followed.since = time.monotonic()
            followed.size = size
            self._changed.notify_all()

    def finish(self, name: str, size: int, patience: float) -> bool:
        """The log ends here: tell what is left. `False` if that was not told within `patience` seconds; it is later."""
        with self._changed:
            followed = self._logs.get(name)
            if followed is None:
                return True
            followed.size, followed.ended = max(size, followed.size), True
            if followed.told >= followed.size:  # as of most that print nothing: there is nothing to be told for
                del self._logs[name]
                return True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._closing or name not in self._logs, patience)

    def close(self) -> None:
        """Idempotent. What was not told stays in its file."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(JOIN_TIMEOUT)

    def _run(self) -> None:
        while (piece := self._next()) is not None:
            followed, offset, size = piece
            data = read(followed.folder.log, offset, size)
            if data:
                self._say(followed.folder, offset, data)
            with self._changed:
                # Where the file is shorter than was said, it was taken away: nothing more will come.
                followed.told = offset + len(data) if data else followed.size
                followed.since = time.monotonic()
                if followed.ended and followed.told >= followed.size:
                    self._logs.pop(followed.folder.name, None)
                self._changed.notify_all()

    def _say(self, folder: AttemptFolder, offset: int, data: bytes) -> None:
        try:
            self._tell(AttemptOutput(task=folder.task, revision=folder.revision, offset=offset, data=data))
        except Exception:
            log.exception("output of task %s at %d was not taken; it stays in its file", folder.task, offset)

    def _next(self) -> tuple[_Followed, int, int] | None:
        """Wait for a piece that is due: log, offset, size; `None` at the end. Logs take turns."""
        with self._changed:
            while not self._closing:
                now, wait = time.monotonic(), None
                for name, followed in list(self._logs.items()):
                    left = followed.size - followed.told
                    if followed.ended and left <= 0:
                        del self._logs[name]
                        self._changed.notify_all()
                    elif left >= SMALLEST or (left > 0 and (followed.ended or now - followed.since >= LINGER)):
                        self._logs[name] = self._logs.pop(name)
                        return followed, followed.told, min(left, LARGEST)
                    elif left > 0:
                        due = max(0.0, followed.since + LINGER - now)
                        wait = due if wait is None else min(wait, due)
                self._changed.wait(wait)
            return None


class KeptLogs:
    """The logs on a worker's disk, for whoever stores them elsewhere and says so; also those of attempts that have ended.

    A log stays on the disk until it is stored to its end, also when its attempt was recorded. Thread-safe.

    Args:
        folder: the worker's.
    """

    def __init__(self, folder: Path) -> None:
        self._folders = WorkerFolders(folder)

    def read(self, task: str, revision: int, offset: int, at_most: int = LARGEST) -> bytes:
        """A piece of the log; b"" behind its end, and of a log that is not kept any more."""
        return read(self._folders.attempt(task, revision).log, offset, at_most)

    def rank(self, task: str, revision: int) -> int:
        """Which member of its gang wrote the log; 0 for one that is in none."""
        try:
            return int(json.loads(self._folders.attempt(task, revision).order.read_bytes())["order"].get("rank", 0))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0

    def stored(self, task: str, revision: int, size: int) -> None:
        """Somebody has stored the first `size` bytes. A log that is stored to its end goes with its attempt.

        Raises `OSError` if that cannot be noted.
        """
        folder = self._folders.attempt(task, revision)
        if folder.path.exists() and size > stored_bytes(folder):
            write_whole(folder.stored, str(size).encode())
        if is_forgotten(folder) and size >= _length(folder):
            folder.remove()

    def drop(self, age: float, now: float) -> None:
        """Give up logs that nobody has stored within `age` seconds after their attempts were recorded.

        Args:
            age: seconds.
            now: seconds since the epoch.
        """
        for folder in list(self._folders.all_attempts()):
            if is_forgotten(folder) and _forgotten(folder).stat().st_mtime < now - age:
                log.warning("the log of task %s was not stored within %g s and is dropped", folder.task, age)
                folder.remove()

    def waiting(self) -> Iterator[tuple[str, int, int, int]]:
        """(task, revision, offset, size) of each log of which not all is stored: the bytes from `offset` to `size` are not."""
        for folder in self._folders.all_attempts():
            stored, size = stored_bytes(folder), _length(folder)
            if stored < size:
                yield folder.task, folder.revision, stored, size


def read(path: Path, offset: int, at_most: int) -> bytes:
    """Bytes of a file; b"" if it is not there."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(at_most)
    except OSError:
        return b""


def stored_bytes(folder: AttemptFolder) -> int:
    """How many bytes of the log somebody else has stored."""
    try:
        return int(folder.stored.read_bytes())
    except (OSError, ValueError):
        return 0


def forget(folder: AttemptFolder) -> None:
    """Remove an attempt's folder; a log that is not stored to its end stays until it is."""
    if stored_bytes(folder) < _length(folder):
        write_whole(_forgotten(folder), b"")
        folder.clear_workspace()
    if stored_bytes(folder) >= _length(folder):  # asked again: it may have been stored meanwhile
        folder.remove()


def is_forgotten(folder: AttemptFolder) -> bool:
    """Whether only its log is still wanted."""
    return _forgotten(folder).exists()


def _forgotten(folder: AttemptFolder) -> Path:
    return folder.path / "forgotten"


def _length(folder: AttemptFolder) -> int:
    try:
        return folder.log.stat().st_size
    except OSError:
        return 0
