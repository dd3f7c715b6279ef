"""Checkpoints at a URL, wherever fsspec can write (`memory://`, `s3://`, `gs://`, `abfs://`, ...).

Object stores show an object when it is complete and durable; where fsspec's file system is a real one, the temporary
name and the move have the same effect. There is no fsync: durability is left to the server.
"""

from __future__ import annotations

import posixpath
from typing import Any, BinaryIO, cast

from fsspec.core import url_to_fs

from dtf_lightning.elastic.checkpoints.record import Part
from dtf_lightning.elastic.checkpoints.storage.interface import TEMPORARY, HashingWriter, Write


class FsspecStorage:
    """A `Storage` whose files are reached through fsspec."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        fs, root = url_to_fs(self.url)
        self._fs: Any = fs
        self._root = str(root)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def write(self, name: str, content: Write) -> Part:
        path = self._path(name)
        temporary = path + TEMPORARY
        self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
        try:
            with self._fs.open(temporary, "wb") as file:
                writer = HashingWriter(file.write)
                content(cast("BinaryIO", writer))
            self._fs.mv(temporary, path)
        except BaseException:
            if self._fs.exists(temporary):
                self._fs.rm(temporary)
            raise
        return Part(name, writer.size, writer.sha256())

    def remove(self, name: str) -> None:
        if self._fs.exists(self._path(name)):
            self._fs.rm(self._path(name), recursive=True)

    def exists(self, name: str) -> bool:
        return bool(self._fs.exists(self._path(name)))

    def names(self) -> list[str]:
        self._fs.invalidate_cache(self._root)
        if not self._fs.exists(self._root):
            return []
        return sorted(posixpath.basename(path.rstrip("/")) for path in self._fs.ls(self._root, detail=False))

    def open(self, name: str) -> BinaryIO:
        return cast("BinaryIO", self._fs.open(self._path(name), "rb"))

    def size(self, name: str) -> int:
        return int(self._fs.size(self._path(name)))

    def location(self, name: str) -> str:
        return f"{self.url}/{name}"
