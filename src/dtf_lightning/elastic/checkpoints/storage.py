"""The places of checkpoints: a local folder, or a URL that fsspec understands.

The writer uses only what `Storage` lists. A local folder turns each method into the operations of `FileOperations`, one
system call each, so that a test can let the process die at every single one of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from dtf_lightning.elastic.checkpoints.record import Part

Write = Callable[[BinaryIO], None]
"""Writes a file's content, front to back, without seeking."""

CHUNK = 8 << 20
"""The number of bytes that are read or written at a time."""

TEMPORARY = ".tmp"
"""The ending of the names of unfinished files."""


class Storage(Protocol):
    """A folder of files. Names are relative, with `/`. Every method may raise `OSError`."""

    url: str

    def write(self, name: str, content: Write) -> Part:
        """Write a file so that it is there as a whole, durably, or not at all; an existing one is replaced."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that is in it; a missing one is no error."""
        ...

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder of that name is there."""
        ...

    def names(self) -> list[str]:
        """Return the files and folders directly inside; none if the folder itself is missing."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading. Raises `FileNotFoundError`."""
        ...

    def size(self, name: str) -> int:
        """Return the size of a file in bytes. Raises `FileNotFoundError`."""
        ...

    def location(self, name: str) -> str:
        """Return the path or URL that torch, Lightning and people can open."""
        ...


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """Return `LocalStorage` for a local path or a `file://` URL, and storage through fsspec for any other URL."""
    text = os.fspath(location)
    scheme, separator, path = text.partition("://")
    if separator and scheme not in ("file", "local"):
        from dtf_lightning.elastic.checkpoints.remote import FsspecStorage

        return FsspecStorage(text)
    return LocalStorage(path if separator else text)


class FileOperations:
    """The system calls of a local folder, one method each, and a whole file written with them."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def create(self, path: Path) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, file: int, data: memoryview) -> int:
        return os.write(file, data)

    def sync(self, file: int) -> None:
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_folder(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        path.rmdir()

    @contextlib.contextmanager
    def whole_file(self, target: Path) -> Iterator[Callable[[memoryview], None]]:
        """Inside, the function given writes; the file has its name afterwards, synced, or an error leaves nothing."""
        temporary = target.with_name(target.name + TEMPORARY)
        file = self.create(temporary)

        def write_all(data: memoryview) -> None:
            while data:
                data = data[self.write(file, data) :]

        try:
            try:
                yield write_all
                self.sync(file)
            finally:
                self.close(file)
            self.rename(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to raise
                self.unlink(temporary)
            raise


class LocalStorage:
    """A local folder: temporary name, write, fsync, rename, fsync of the folder. So a file under its name is whole."""

    def __init__(self, folder: str | os.PathLike[str], operations: FileOperations | None = None) -> None:
        self.folder = Path(folder)
        self.url = str(self.folder)
        self._do = operations or FileOperations()

    def write(self, name: str, content: Write) -> Part:
        target = self.folder / name
        self._do.make_folder(target.parent)
        with self._do.whole_file(target) as sink:
            writer = HashingWriter(sink)
            content(cast("BinaryIO", writer))
        self._do.sync_folder(target.parent)
        return Part(name, writer.size, writer.sha256())

    def remove(self, name: str) -> None:
        target = self.folder / name
        if target.is_dir():
            for entry in list(target.iterdir()):
                self.remove(f"{name}/{entry.name}")
            self._do.remove_folder(target)
        else:
            self._do.unlink(target)

    def exists(self, name: str) -> bool:
        return (self.folder / name).exists()

    def names(self) -> list[str]:
        try:
            return sorted(os.listdir(self.folder))
        except FileNotFoundError:
            return []

    def open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("rb")

    def size(self, name: str) -> int:
        return (self.folder / name).stat().st_size

    def location(self, name: str) -> str:
        return str(self.folder / name)


class HashingWriter:
    """A writable file that hashes and counts what passes through: nothing is read back for its checksum."""

    def __init__(self, sink: Callable[[memoryview], Any]) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            chunk = view[start : start + CHUNK]
            self._hash.update(chunk)
            self._sink(chunk)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Do nothing: there is no buffer."""

    def sha256(self) -> str:
        return self._hash.hexdigest()


def checksum(storage: Storage, name: str) -> Part:
    """Return the size and checksum of a file as it lies there. Raises `OSError`."""
    digest, size = hashlib.sha256(), 0
    with storage.open(name) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Part(name, size, digest.hexdigest())
