"""Files of a farm that never enter etcd: the output of attempts, and the sources that tasks begin with.

They lie in one folder that all coordinators of the farm share:

    logs/<task>/<revision>      what an attempt has written, its revision being its identity
    logs/<task>/<revision>.<n>  of a gang's attempt: what its member of rank n > 0 has written
    sources/<digest>            an archive, by the SHA-256 of its bytes

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
import secrets
from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.errors import DtfError, SettingsError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SAFE = re.compile(r"[0-9a-f-]{36}")


class OutOfOrder(DtfError):
    """A chunk of output is not the one that comes next. `wanted` is the offset of that one."""

    def __init__(self, wanted: int) -> None:
        super().__init__(f"the next chunk of this output begins at {wanted}")
        self.wanted = wanted


class FarmFiles:
    """Synchronous: call it from a thread where an event loop must not wait. Raises `OSError` where the disk does."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._sources = folder / "sources"
        for path in (self._logs, self._sources):
            path.mkdir(parents=True, exist_ok=True)

    # --- output ------------------------------------------------------------------------------------------------------

    def append_log(self, task: str, revision: int, offset: int, chunk: bytes, rank: int = 0) -> int:
        """Add to an attempt's output; returns its length. Raises `OutOfOrder` for a chunk behind a gap."""
        path = self._log(task, revision, rank)
        path.parent.mkdir(exist_ok=True)
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

    def read_log(self, task: str, revision: int, offset: int, size: int, rank: int = 0) -> bytes:
        """Return up to `size` bytes of an attempt's output; nothing where there is none yet."""
        try:
            with self._log(task, revision, rank).open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            return b""

    def attempts_with_log(self, task: str) -> list[int]:
        """Return the revisions of a task's attempts that have written something, oldest first."""
        with contextlib.suppress(FileNotFoundError):
            names = {name.partition(".")[0] for name in os.listdir(self._task_logs(task))}
            return sorted(int(name) for name in names if name.isdecimal())
        return []

    def _task_logs(self, task: str) -> Path:
        if not _SAFE.fullmatch(task):
            raise SettingsError(f"{task!r} is no task id; expected a UUID in small letters")
        return self._logs / task

    def _log(self, task: str, revision: int, rank: int) -> Path:
        return self._task_logs(task) / (f"{revision}.{rank}" if rank else str(revision))

    # --- sources -----------------------------------------------------------------------------------------------------

    def source(self, digest: str) -> Path | None:
        """Return where the archive with this digest lies, if it is here."""
        path = self._source(digest)
        return path if path.exists() else None

    def add_source(self, digest: str, chunks: Iterable[bytes]) -> None:
        """Keep an archive. Raises `SettingsError` if its bytes have another digest."""
        place = self._source(digest)
        beside = place.with_name(f".{digest}.{secrets.token_hex(4)}")
        told = hashlib.sha256()
        try:
            with beside.open("wb") as file:
                for chunk in chunks:
                    told.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            if told.hexdigest() != digest:
                raise SettingsError(f"the archive {digest} came with the digest {told.hexdigest()}: send it again")
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)

    def _source(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise SettingsError(f"{digest!r} is no digest; expected 64 hexadecimal digits (SHA-256)")
        return self._sources / digest
