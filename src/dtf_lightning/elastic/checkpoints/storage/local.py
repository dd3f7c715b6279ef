"""Checkpoints in a local folder.

Each thing that is done to a file is an operation of `FileOperations`, one system call each, so that a test can die at
every single one of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from dtf_lightning.elastic.checkpoints.record import Part
from dtf_lightning.elastic.checkpoints.storage.interface import TEMPORARY, HashingWriter, Write


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
