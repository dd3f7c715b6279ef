"""`Spool` keeps outcomes on disk until some coordinator has recorded them.

Rules that this file guards:

* an outcome is on the disk when `keep` returns, and only then may anybody be told;
* it is there after any restart, until `forget`;
* a full disk does not lose it: `BALLAST` bytes lie ready and make room.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.farm.json_values import from_json, to_json
from dtf_lightning.farm.rules.attempts import AttemptOutcome
from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.logs import forget
from dtf_lightning.whole_files import write_durably

log = logging.getLogger(__name__)

BALLAST = 1 << 20
"""Bytes: some hundred outcomes."""
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, kw_only=True)
class Kept:
    """An outcome that no coordinator has recorded yet, as far as this worker knows."""

    number: int
    """Of the attempt at its task."""
    task: str
    revision: int
    outcome: AttemptOutcome


class Spool:
    """Thread-safe.

    Args:
        folder: the worker's, as for its `Executor`.
        write: writes a file so that it is on the disk afterwards.
    """

    def __init__(self, folder: Path, *, write: Callable[[Path, bytes], None] = write_durably) -> None:
        self._folders = WorkerFolders(folder)
        self._write = write
        self._lock = threading.Lock()
        self._ballast = self._folders.path / "ballast"
        self._load_ballast()

    def keep(self, number: int, task: str, revision: int, outcome: AttemptOutcome) -> None:
        """Keep an outcome; keeping it twice is keeping it once. Raises `OSError` if the disk takes nothing at all."""
        path = self._folders.spooled(task, revision)
        body = {"number": number, "task": task, "revision": revision, "outcome": to_json(outcome)}
        data = json.dumps(body).encode()
        with self._lock:
            if path.exists():
                return
            try:
                self._write(path, data)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                log.warning("the disk is full: room is made for the outcome of task %s", task)
                self._ballast.unlink(missing_ok=True)
                self._write(path, data)

    def kept(self) -> list[Kept]:
        """Every outcome that is kept, the oldest first."""
        with self._lock:
            paths = [path for path in self._folders.spool.glob("*.json") if not path.name.startswith(".")]
            paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
            return [kept for path in paths if (kept := _read(path)) is not None]

    def holds(self, task: str, revision: int) -> bool:
        """Whether the outcome of this attempt is kept."""
        return self._folders.spooled(task, revision).exists()

    def forget(self, task: str, revision: int) -> None:
        """It is recorded: remove outcome and workspace; the log goes once `KeptLogs` hears that it is stored. Idempotent."""
        with self._lock:
            # In this order: an attempt whose outcome is not spooled is told once more by the next worker.
            folder = self._folders.attempt(task, revision)
            if folder.path.exists():
                forget(folder)
            self._folders.spooled(task, revision).unlink(missing_ok=True)
            self._load_ballast()

    def _load_ballast(self) -> None:
        if self._ballast.exists():
            return
        try:
            file = os.open(self._ballast, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, BALLAST)
            finally:
                os.close(file)
        except OSError as error:
            log.warning("the disk of %s has no room for %d bytes: %s", self._folders.path, BALLAST, error)
            self._ballast.unlink(missing_ok=True)


def _read(path: Path) -> Kept | None:
    """`None`, with a line in the log, for a file that the disk has damaged; it is put aside."""
    try:
        body = json.loads(path.read_bytes())
        return Kept(**body | {"outcome": from_json(AttemptOutcome, body["outcome"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.error("the outcome in %s cannot be read and is put aside: %r", path, error)
        path.rename(path.with_suffix(".damaged"))
        return None
