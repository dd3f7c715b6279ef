"""What a place for checkpoints must be able to do: the writer uses only what `Storage` lists."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, BinaryIO, Protocol

from dtf_lightning.elastic.checkpoints.record import Part

Write = Callable[[BinaryIO], None]
"""Writes a file's content, front to back, without seeking."""

CHUNK = 8 << 20
"""Bytes read or written at a time."""

TEMPORARY = ".tmp"
"""How the names of unfinished files end."""


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
        """Whether a file or folder of that name is there."""
        ...

    def names(self) -> list[str]:
        """Files and folders directly inside; none if the folder itself is missing."""
        ...

    def open(self, name: str) -> BinaryIO:
        """For reading. Raises `FileNotFoundError`."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file. Raises `FileNotFoundError`."""
        ...

    def location(self, name: str) -> str:
        """A path or URL that torch, Lightning and people can open."""
        ...


class HashingWriter:
    """A file for writing that hashes and counts what passes through: nothing is read back for its checksum."""

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
        """There is no buffer."""

    def sha256(self) -> str:
        return self._hash.hexdigest()


def checksum(storage: Storage, name: str) -> Part:
    """Size and checksum of a file as it lies there. Raises `OSError`."""
    digest, size = hashlib.sha256(), 0
    with storage.open(name) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return Part(name, size, digest.hexdigest())
