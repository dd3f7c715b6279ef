"""Files that tasks leave: in a folder, or at any fsspec URL; never in etcd.

    <store>/<task>/<attempt's revision>/<SHA-256>-<name, quoted>

Rules that this file guards:
- A file is there in whole or not at all, and has the digest and the name that its place says: that is checked on the way
  in. Bringing it twice is bringing it once.
- It is written as it comes, in pieces; a file above the limit is refused before it fills the disk.
- What a place says is all there is to know of it: a listing needs no database.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote, unquote

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.settings.hosts import is_remote, local_path
from dtf_lightning.whole_files import is_left_beside, whole_file

CHUNK = 256 * 1024
MAX_NAME = 180
"""Bytes of a name as it is quoted: with its digest it is a file's name (255)."""
LEFT_BESIDE = 86400.0
"""Seconds after which a file that is only half there is what a dead process has left."""
_TASK = re.compile(r"[0-9a-f-]{36}")
_PLACE = re.compile(r"([0-9a-f]{64})-(.+)")


class ArtifactsUnavailable(DtfError):
    """The store does not take or give what it is asked for, perhaps only for now."""


class ArtifactTooLarge(DtfError):
    """A file above the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """A file that a task has left."""

    name: str
    """As the task has it: relative, with `/`."""
    size: int
    """Bytes."""
    digest: str
    """SHA-256, in hexadecimal."""
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTask:
    """All that the attempts at one task have left."""

    task: str
    size: int
    """Bytes."""
    newest: float
    """When its latest file came, in seconds since the epoch."""


class _Folder(Protocol):
    """A folder of files; the same on a disk and at a URL. Names have `/`. Raises what the place raises."""

    url: str

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        """The file is there in whole, or the chunks raised and it is not."""

    def read(self, name: str) -> IO[bytes]: ...
    def files(self, folder: str) -> list[tuple[str, int, float]]:
        """Return (name, size, time) of each file in a folder; nothing where there is none."""

    def folders(self, folder: str) -> list[str]: ...
    def remove(self, folder: str) -> None:
        """Remove a folder and all in it."""


class ArtifactStore:
    """Thread-safe. Call it from a thread where an event loop must not wait.

    Args:
        url: a local path or an fsspec URL.
        max_size: bytes of a file.

    Raises `SettingsError` for a URL that nothing installed here can reach; its methods raise `ArtifactsUnavailable`.
    """

    def __init__(self, url: str, max_size: int) -> None:
        self.url = url
        self.max_size = max_size
        self._folder: _Folder = _RemoteFolder(url) if is_remote(url) else _LocalFolder(local_path(url))

    def put(self, task: str, revision: int, name: str, digest: str, chunks: Iterable[bytes]) -> Stored:
        """Keep a file. Raises `SettingsError` for a bad name or another digest, `ArtifactTooLarge`."""
        place = f"{_attempt(task, revision)}/{_file_name(name, digest)}"
        size = 0
        told = hashlib.sha256()

        def checked() -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                size += len(chunk)
                if size > self.max_size:
                    raise ArtifactTooLarge(
                        f"the artifact {name!r} has more than the {self.max_size} bytes that are allowed"
                    )
                told.update(chunk)
                yield chunk
            if told.hexdigest() != digest:
                raise SettingsError(f"the artifact {name!r} came with the digest {told.hexdigest()}, expected {digest}")

        with self._said(f"does not take {name!r} of {task}"):
            self._folder.write(place, checked())
        return Stored(name=name, size=size, digest=digest, url=self._url(place))

    def find(self, task: str, revision: int, name: str, digest: str = "") -> Stored | None:
        """Return a file that is there. `digest`: of the one that is meant; "": whatever it has."""
        for stored in self.all(task, revision):
            if stored.name == name and digest in ("", stored.digest):
                return stored
        return None

    def all(self, task: str, revision: int) -> list[Stored]:
        """Return what an attempt has left, by name."""
        folder = _attempt(task, revision)
        found = []
        with self._said(f"cannot list the artifacts of {task}"):
            for name, size, _ in self._folder.files(folder):
                if (place := _PLACE.fullmatch(name)) is not None:
                    url = self._url(f"{folder}/{name}")
                    found.append(Stored(name=unquote(place[2]), size=size, digest=place[1], url=url))
        return sorted(found, key=lambda stored: stored.name)

    def open(self, task: str, revision: int, stored: Stored) -> Iterator[bytes]:
        """Yield a file's bytes."""
        place = f"{_attempt(task, revision)}/{_file_name(stored.name, stored.digest)}"
        with self._said(f"does not give {stored.name!r} of {task}"), self._folder.read(place) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def tasks(self) -> Iterator[StoredTask]:
        """Yield what each task has left, for a decision on what may go."""
        with self._said("cannot be listed"):
            for task in self._folder.folders(""):
                if not _TASK.fullmatch(task):
                    continue
                size, newest = 0, 0.0
                for revision in self._folder.folders(task):
                    for _, length, when in self._folder.files(f"{task}/{revision}"):
                        size, newest = size + length, max(newest, when)
                yield StoredTask(task=task, size=size, newest=newest)

    def remove(self, task: str) -> None:
        """Remove all that a task has left. Idempotent."""
        _check_task(task)
        with self._said(f"does not remove what {task} has left"):
            self._folder.remove(task)

    def _url(self, place: str) -> str:
        return f"{self._folder.url.rstrip('/')}/{quote(place, safe='/%')}"

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        try:
            yield
        except DtfError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            raise ArtifactsUnavailable(f"the artifacts' store {self.url} {what}: {error!r}") from error


class _LocalFolder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self.url = self._folder.as_uri()

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self._folder / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with whole_file(path, durable=True) as file:
            for chunk in chunks:
                file.write(chunk)

    def read(self, name: str) -> IO[bytes]:
        return (self._folder / name).open("rb")

    def files(self, folder: str) -> list[tuple[str, int, float]]:
        found = []
        for path in self._entries(folder):
            status = path.stat()
            if not is_left_beside(path):
                found.append((path.name, status.st_size, status.st_mtime))
            elif status.st_mtime < time.time() - LEFT_BESIDE:
                path.unlink(missing_ok=True)
        return found

    def folders(self, folder: str) -> list[str]:
        return sorted(path.name for path in self._entries(folder) if path.is_dir())

    def remove(self, folder: str) -> None:
        import shutil

        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder / folder)

    def _entries(self, folder: str) -> list[Path]:
        try:
            return list((self._folder / folder).iterdir())
        except FileNotFoundError:
            return []


class _RemoteFolder:
    """Of an fsspec file system. Object stores show a file when it is whole; others are given it under another name first."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self._system, self._folder = url_to_fs(url, use_listings_cache=False)
        except Exception as error:  # each file system has exceptions of its own
            raise SettingsError(f"the artifacts' store {url} cannot be opened: {error!r}") from error

    def write(self, name: str, chunks: Iterable[bytes]) -> None:
        path = self._path(name)
        self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
        beside = f"{path.rpartition('/')[0]}/.{hashlib.sha256(path.encode()).hexdigest()[:16]}-{time.monotonic_ns()}"
        try:
            with self._system.open(beside, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            self._system.mv(beside, path)
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to raise
                self._system.rm(beside)
            raise

    def read(self, name: str) -> IO[bytes]:
        file: IO[bytes] = self._system.open(self._path(name), "rb")
        return file

    def files(self, folder: str) -> list[tuple[str, int, float]]:
        return [
            (_last(info["name"]), int(info.get("size") or 0), _time_of(info))
            for info in self._infos(folder)
            if info["type"] == "file"
        ]

    def folders(self, folder: str) -> list[str]:
        return sorted(_last(info["name"]) for info in self._infos(folder) if info["type"] == "directory")

    def remove(self, folder: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._system.rm(self._path(folder), recursive=True)

    def _infos(self, folder: str) -> list[dict[str, Any]]:
        try:
            found: list[dict[str, Any]] = self._system.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return found

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}".rstrip("/")


def _last(path: object) -> str:
    return str(path).rstrip("/").rpartition("/")[2]


def _time_of(info: dict[str, Any]) -> float:
    """When a file came, as far as its file system says; else now, so that nothing goes that may be young."""
    for name in ("mtime", "LastModified", "updated", "created", "last_modified"):
        told = info.get(name)
        if isinstance(told, int | float):
            return float(told)
        if isinstance(told, datetime):
            return told.timestamp()
    return time.time()


def _check_task(task: str) -> None:
    if not _TASK.fullmatch(task):
        raise SettingsError(f"{task!r} is no task id; expected a UUID in small letters")


def _attempt(task: str, revision: int) -> str:
    _check_task(task)
    return f"{task}/{revision}"


def _file_name(name: str, digest: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SettingsError(f"{digest!r} is no digest; expected 64 hexadecimal digits (SHA-256)")
    quoted = quote(name, safe="")
    if not name or len(quoted) > MAX_NAME:
        raise SettingsError(
            f"the artifact's name {name[:60]!r}... has {len(quoted)} bytes when it is quoted, {MAX_NAME} are allowed"
        )
    return f"{digest}-{quoted}"
