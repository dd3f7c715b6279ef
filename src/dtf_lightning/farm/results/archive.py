"""Where the archive's files lie: a local folder, or a URL that fsspec understands (`s3://`, `gs://`, `memory://`, ...).

    <folder>/2026-11-27/20261127T234500.123456-<coordinator>-<random>.parquet

Rules that this file guards:
- A file is there in whole or not at all, and for good when `write` returns: what it holds is deleted from etcd after that.
- Names are by the time of their writing, so that the files since a day are found without listing all, and no two are alike.
"""

from __future__ import annotations

import os
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from dtf_lightning.errors import DtfError
from dtf_lightning.whole_files import sync_folder, write_durably

SUFFIX = ".parquet"
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class ArchiveUnavailable(DtfError):
    """The archive does not take a file, or does not give one. Everything that it was to hold is still in etcd."""


class ArchiveFolder(Protocol):
    """All methods raise `ArchiveUnavailable`."""

    def write(self, name: str, data: bytes) -> None:
        """Keep a file under a new name."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file."""
        ...

    def names(self, since: str = "") -> list[str]:
        """Return those of all files, sorted; with `since` those of the days from that file's, or that day, on."""
        ...


def new_name(wall: float, coordinator: str) -> str:
    """Return a name that no other file has. `wall`: seconds since the epoch."""
    at = datetime.fromtimestamp(wall, UTC)
    return f"{at:%Y-%m-%d}/{at:%Y%m%dT%H%M%S.%f}-{quote(coordinator, safe='')}-{secrets.token_hex(4)}{SUFFIX}"


def open_archive(url: str) -> ArchiveFolder:
    """Return the archive at a local path or a URL. Nothing is asked of it yet.

    Raises `ArchiveUnavailable` for a URL that nothing installed here can reach.
    """
    if "://" not in url or url.startswith("file://"):
        return LocalArchive(Path(url.removeprefix("file://")))
    return RemoteArchive(url)


class LocalArchive:
    """A folder, on a disk or a share; made by the first write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        try:
            self._make(path.parent)
            write_durably(path, data)
        except OSError as error:
            raise ArchiveUnavailable(f"the archive {self._folder} does not take {name}: {error}") from error

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            raise ArchiveUnavailable(f"the archive {self._folder} does not give {name}: {error}") from error

    def names(self, since: str = "") -> list[str]:
        try:
            if not self._folder.exists():
                return []
            return sorted(
                f"{day}/{name}"
                for day in os.listdir(self._folder)
                if _is_wanted(day, since)
                for name in os.listdir(self._folder / day)
                if _is_file(name)
            )
        except OSError as error:
            raise ArchiveUnavailable(f"the archive {self._folder} cannot be listed: {error}") from error

    def _make(self, day: Path) -> None:
        for folder in (self._folder, day):
            if not folder.exists():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)


class RemoteArchive:
    """A folder of an fsspec file system. Object stores show a file when it is whole."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self._url = url
        try:
            self._system, self._folder = url_to_fs(url, use_listings_cache=False)
        except Exception as error:  # each file system has exceptions of its own
            raise ArchiveUnavailable(f"the archive {url} cannot be opened: {error!r}") from error

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        try:
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(path, data)
            size = self._system.info(path)["size"]
        except Exception as error:
            raise ArchiveUnavailable(f"the archive {self._url} does not take {name}: {error!r}") from error
        if size != len(data):
            raise ArchiveUnavailable(f"the archive {self._url} has {size} bytes of {name}, {len(data)} were written")

    def read(self, name: str) -> bytes:
        try:
            return bytes(self._system.cat_file(self._path(name)))
        except Exception as error:
            raise ArchiveUnavailable(f"the archive {self._url} does not give {name}: {error!r}") from error

    def names(self, since: str = "") -> list[str]:
        try:
            days = [day for day in self._names("") if _is_wanted(day, since)]
            return sorted(f"{day}/{name}" for day in days for name in self._names(day) if _is_file(name))
        except Exception as error:
            raise ArchiveUnavailable(f"the archive {self._url} cannot be listed: {error!r}") from error

    def _names(self, folder: str) -> list[str]:
        try:
            told: list[Any] = self._system.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rstrip("/").rpartition("/")[2] for path in told]

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}".rstrip("/")


def _is_wanted(day: str, since: str) -> bool:
    return _DAY.fullmatch(day) is not None and day >= since.partition("/")[0]


def _is_file(name: str) -> bool:
    return name.endswith(SUFFIX) and not name.startswith(".")
