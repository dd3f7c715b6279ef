"""The snapshots of one run that lie under one folder, in a node's memory or on its disk.

Rules that this file guards:

* a snapshot has its name only when it is whole: it is written under a temporary name, then renamed;
* the last two are kept; the older one goes only when a newer one is whole, or when there would be no room for it;
* with what is kept and what is being written, the folder in memory never takes more than its bound;
* only this user can enter the folder, because what is read from it is unpickled.

    <snapshot_dir>/dtf-<user>-<key>/<writer>/<serial>.snapshot     the key is the run's, a writer is one agent's workers
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dtf_lightning.elastic.checkpoints.storage.interface import TEMPORARY
from dtf_lightning.elastic.checkpoints.storage.local import FileOperations
from dtf_lightning.elastic.snapshots.format import (
    SnapshotDamaged,
    SnapshotHeader,
    read_header,
    sizes_of,
    write_snapshot,
)
from dtf_lightning.elastic.snapshots.packing import Packed
from dtf_lightning.errors import DtfError

log = logging.getLogger("dtf_lightning")

KEPT = 2
SUFFIX = ".snapshot"
ALIVE, WRITING = "alive", "writing"
"""Lock files: the first is held (shared) by every living worker of the writer, the second by the worker that writes."""


class NoRoom(DtfError):
    """Raised for a snapshot that does not fit into its folder's bound."""


@dataclass(frozen=True)
class Stored:
    """One snapshot whose header is intact."""

    path: Path
    header: SnapshotHeader

    @property
    def serial(self) -> int:
        return int(self.path.stem)


class SnapshotFolder:
    """The snapshots of all writers under one root; this process writes those of one.

    Args:
        root: the run's folder; it is created so that only this user can enter it.
        writer: the name of this node's part of it.
        limit: bytes that the snapshots of `writer` may take; `None` for no bound.
        operations: the system calls, replaced in tests.

    Raises:
        OSError: the folder cannot be created, or belongs to somebody else.
    """

    def __init__(
        self, root: Path, writer: str, limit: int | None = None, operations: FileOperations | None = None
    ) -> None:
        self.root, self.path, self.limit = root, root / writer, limit
        self._do = operations or FileOperations()
        _make_private(root)
        _make_private(self.path)
        self._alive = self._lock_file(self.path / ALIVE)
        fcntl.flock(self._alive, fcntl.LOCK_SH)

    def stored(self) -> list[Stored]:
        """Return all writers' snapshots, this one's first, each newest first; damaged ones cost a warning."""
        try:
            writers = sorted(self.root.iterdir(), key=lambda path: (path != self.path, path.name))
        except OSError:
            return []
        return [found for writer in writers for found in _stored_in(writer)]

    def write(self, packed: Packed, header: SnapshotHeader) -> Path | None:
        """Write a snapshot; return `None` if another worker of this node has written one of this or a later position.

        Raises:
            NoRoom: the snapshot is larger than the bound allows beside the last one.
            OSError: it cannot be written, for example because the file system is full; the earlier ones are intact.
        """
        header = replace(header, sizes=sizes_of(packed))
        with self._writing():
            kept = _stored_in(self.path)
            if any(other.header.position >= header.position and _kin(other.header, header) for other in kept):
                return None
            self._make_room(kept, len(header.encode()) + header.payload)
            target = self.path / f"{1 + max((one.serial for one in kept), default=0):012d}{SUFFIX}"
            try:
                self._write_file(target, packed, header)
            except OSError:
                if len(kept) < KEPT:
                    raise
                self._do.unlink(kept.pop().path)
                self._write_file(target, packed, header)
            for old in kept[KEPT - 1 :]:
                self._do.unlink(old.path)
        return target

    def remove_foreign(self, instance: str) -> None:
        """Remove the snapshots of other instances of the run, and what writers that were killed did not finish."""
        for writer in [*self._dead_writers(), self.path]:
            for path in writer.glob(f"*{TEMPORARY}"):
                path.unlink(missing_ok=True)
            for one in _stored_in(writer):
                if one.header.instance != instance:
                    one.path.unlink(missing_ok=True)

    def remove_dead_writers(self) -> None:
        """Remove the folders of agents whose workers are gone, once their state has been taken over."""
        for writer in self._dead_writers():
            shutil.rmtree(writer, ignore_errors=True)

    def own(self) -> list[Stored]:
        """Return the snapshots of this node's writer, newest first."""
        return _stored_in(self.path)

    def remove_own(self) -> None:
        """Remove this writer's snapshots if none of its other workers lives, and release the lock. Idempotent."""
        self.close()
        if _is_dead(self.path):
            shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Release the lock that says that this worker lives. Idempotent."""
        if self._alive >= 0:
            fcntl.flock(self._alive, fcntl.LOCK_UN)  # closing would not: the loader's processes have the file, too
            os.close(self._alive)
            self._alive = -1

    # --- steps of the above ------------------------------------------------------------------------------------------

    def _make_room(self, kept: list[Stored], size: int) -> None:
        """Remove old snapshots until the new one and at least the newest old one fit below the bound."""
        if self.limit is None:
            return
        sizes = [one.path.stat().st_size for one in kept]
        if size + (sizes[0] if sizes else 0) > self.limit:
            raise NoRoom(f"a snapshot of {size} bytes beside the last one; {self.limit} bytes are allowed")
        while size + sum(sizes) > self.limit:
            sizes.pop()
            self._do.unlink(kept.pop().path)

    def _write_file(self, target: Path, packed: Packed, header: SnapshotHeader) -> None:
        with self._do.whole_file(target) as sink:
            write_snapshot(packed, header, sink)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        file = self._lock_file(self.path / WRITING)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    def _lock_file(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _dead_writers(self) -> list[Path]:
        """Return the folders of the other writers of whose workers none lives."""
        found = []
        with contextlib.suppress(OSError):
            found = [path for path in self.root.iterdir() if path.is_dir() and path != self.path]
        return [path for path in found if _is_dead(path)]


def _is_dead(writer: Path) -> bool:
    try:
        file = os.open(writer / ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # the folder is just being created
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def _kin(one: SnapshotHeader, other: SnapshotHeader) -> bool:
    return (one.instance, one.signature) == (other.instance, other.signature)


def _stored_in(writer: Path) -> list[Stored]:
    """Return the intact snapshots of one writer, newest first."""
    found = []
    for path in sorted(writer.glob(f"*{SUFFIX}"), reverse=True):
        try:
            found.append(Stored(path, read_header(path)))
        except SnapshotDamaged as error:
            log.warning("a snapshot is damaged and left out: %s", error)
        except OSError as error:
            log.warning("snapshot %s cannot be read and is left out: %s", path, error)
    return found


def _make_private(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not a folder that only this user can enter; snapshots are not put there")
