"""Files of a farm that never enter etcd: the output of attempts, and the sources that tasks begin with.

They lie in one folder that all coordinators of the farm share:

    logs/<task>/<revision>      what an attempt has written, its revision being its identity
    logs/<task>/<revision>.<n>  of a gang's attempt: what its member of rank n > 0 has written
    sources/<digest>            an archive, by the SHA-256 of its bytes
    stdin/<task>                what a task reads; <task>.complete beside it once all of it is there

and in a store of their own the files that attempts have left (`results/artifacts.py`).

Rules that this file guards:
- Output comes in chunks with offsets. A chunk that is there already is passed over, one behind a gap is refused with the
  offset that is wanted: a chunk may be sent twice, by a worker that has not seen the answer.
- A source is there in whole or not at all: it is written beside its place, checked against its digest, and renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.results.artifacts import LEFT_BESIDE, ArtifactStore
from dtf_lightning.farm.rules.retention import StoredThing
from dtf_lightning.whole_files import is_left_beside, whole_file

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAFE = re.compile(r"[0-9a-f-]{36}")


class OutOfOrder(DtfError):
    """A chunk of output is not the one that comes next. `wanted` is the offset of that one."""

    def __init__(self, wanted: int) -> None:
        super().__init__(f"the next chunk of this output begins at {wanted}")
        self.wanted = wanted


class FarmFiles:
    """Synchronous: call it from a thread where an event loop must not wait. Raises `OSError` where the disk does."""

    def __init__(self, folder: Path, artifacts: ArtifactStore) -> None:
        self.artifacts = artifacts
        self._logs = folder / "logs"
        self._sources = folder / "sources"
        self._stdin = folder / "stdin"
        for path in (self._logs, self._sources, self._stdin):
            path.mkdir(parents=True, exist_ok=True)

    # --- output ------------------------------------------------------------------------------------------------------

    def append_log(self, task: str, revision: int, offset: int, chunk: bytes, rank: int = 0) -> int:
        """Add to an attempt's output; returns its length. Raises `OutOfOrder` for a chunk behind a gap."""
        path = self._log(task, revision, rank)
        path.parent.mkdir(exist_ok=True)
        return _append(path, offset, chunk)

    def read_log(self, task: str, revision: int, offset: int, size: int, rank: int = 0) -> bytes:
        """Return up to `size` bytes of an attempt's output; nothing where there is none yet."""
        try:
            with self._log(task, revision, rank).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            return b""

    def log_size(self, task: str, revision: int, rank: int = 0) -> int:
        """Return the length of an attempt's output; 0 where there is none yet."""
        try:
            return self._log(task, revision, rank).stat().st_size
        except FileNotFoundError:
            return 0

    def attempts_with_log(self, task: str) -> list[int]:
        """Return the revisions of a task's attempts that have written something, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            names = {name.partition(".")[0] for name in os.listdir(self._task_logs(task))}
            return sorted(int(name) for name in names if name.isdecimal())
        return []

    def stored_logs(self) -> Iterator[StoredThing]:
        """Yield what each task's attempts have written, by the task's id."""
        for folder in list(self._logs.iterdir()):
            states = [path.stat() for path in folder.iterdir()]
            newest = max((state.st_mtime for state in states), default=folder.stat().st_mtime)
            yield StoredThing(name=folder.name, size=sum(state.st_size for state in states), used=newest)

    def remove_log(self, task: str) -> None:
        """Remove what a task's attempts have written. Idempotent."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._task_logs(task))

    def _task_logs(self, task: str) -> Path:
        if not _SAFE.fullmatch(task):
            raise SettingsError(f"{task!r} is no task id; expected a UUID in small letters")
        return self._logs / task

    def _log(self, task: str, revision: int, rank: int) -> Path:
        return self._task_logs(task) / (f"{revision}.{rank}" if rank else str(revision))

    # --- standard input ----------------------------------------------------------------------------------------------

    def append_stdin(self, task: str, offset: int, chunk: bytes, *, complete: bool) -> int:
        """Add to a task's standard input; returns its length. `complete`: nothing follows. Raises `OutOfOrder`."""
        path = self._stdin_of(task)
        size = _append(path, offset, chunk)
        if complete:
            path.with_name(f"{task}.complete").touch()
        return size

    def read_stdin(self, task: str, offset: int, size: int) -> tuple[bytes, bool]:
        """Return up to `size` bytes of a task's standard input, and whether its end comes behind them."""
        path = self._stdin_of(task)
        complete = path.with_name(f"{task}.complete").exists()  # looked at first: nothing is added behind it
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
                return data, complete and not file.read(1)
        except FileNotFoundError:
            return b"", False

    def stored_stdin(self) -> Iterator[StoredThing]:
        """Yield every task's standard input by the task's id."""
        for path in list(self._stdin.iterdir()):
            if _SAFE.fullmatch(path.name):
                status = path.stat()
                yield StoredThing(name=path.name, size=status.st_size, used=status.st_mtime)

    def remove_stdin(self, task: str) -> None:
        """Remove a task's standard input. Idempotent."""
        path = self._stdin_of(task)
        for part in (path, path.with_name(f"{task}.complete")):
            part.unlink(missing_ok=True)

    def _stdin_of(self, task: str) -> Path:
        if not _SAFE.fullmatch(task):
            raise SettingsError(f"{task!r} is no task id; expected a UUID in small letters")
        return self._stdin / task

    # --- sources -----------------------------------------------------------------------------------------------------

    def source(self, digest: str) -> Path | None:
        """Return where the archive with this digest lies, if it is here."""
        path = self._source(digest)
        try:
            os.utime(path)  # it is used: whoever asks is going to submit a task with it
        except FileNotFoundError:
            return None
        return path

    def add_source(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Keep an archive. Raises `SettingsError` if its bytes have another digest."""
        place = self._source(digest)
        told = hashlib.sha256()
        with whole_file(place, durable=True) as file:
            for chunk in chunks:
                told.update(chunk)
                file.write(chunk)
            if told.hexdigest() != digest:
                raise SettingsError(f"the archive {digest} came with the digest {told.hexdigest()}: send it again")

    def stored_sources(self) -> Iterator[StoredThing]:
        """Yield every source by its digest. What a dead process has left half done goes."""
        for path in list(self._sources.iterdir()):
            status = path.stat()
            if _DIGEST.fullmatch(path.name):
                yield StoredThing(name=path.name, size=status.st_size, used=status.st_mtime)
            elif is_left_beside(path) and status.st_mtime < time.time() - LEFT_BESIDE:
                path.unlink(missing_ok=True)

    def remove_source(self, digest: str, before: float) -> None:
        """Remove a source unless it was used after `before`, seconds since the epoch. Idempotent."""
        path = self._source(digest)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < before:
                path.unlink()

    def _source(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise SettingsError(f"{digest!r} is no digest; expected 64 hexadecimal digits (SHA-256)")
        return self._sources / digest


def _append(path: Path, offset: int, chunk: bytes) -> int:
    """Add a chunk to a file, as far as it is not there; returns the file's length. Raises `OutOfOrder` behind a gap."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        size = os.fstat(file).st_size
        if offset > size:
            raise OutOfOrder(size)
        new = chunk[size - offset :]
        while new:
            written = os.pwrite(file, new, size)
            size += written
            new = new[written:]
        return size
    finally:
        os.close(file)
