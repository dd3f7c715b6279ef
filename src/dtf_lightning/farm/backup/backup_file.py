"""The file of a backup: a ZIP archive that says of each part how long it is and which digest it has.

    manifest.json          of which farm, when, at which revision; size and SHA-256 of every other part
    record.jsonl           a line for each key of the record
    archive/<day>/<name>   the archive of results
    sources/<digest>       what open tasks and schedules begin with
    stdin/<task>[.complete]
    token                  the farm's own, unless it was left out

Rules that this file guards:
- The file is whole under its name or not there, its owner's alone, and on the disk when `write_backup` returns; what lay under
  the name before stays until then.
- The archive's comment is the manifest's digest, and the manifest has all others: any byte that is changed, cut off or added to
  a part is found by `verify`, which is called before anything is done with what a file holds.
- A part's name decides where it is written: only names of these forms are taken.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.backup.returning import Entry
from dtf_lightning.whole_files import whole_file

FORMAT = 1
MANIFEST, RECORD, TOKEN = "manifest.json", "record.jsonl", "token"
ARCHIVE, SOURCES, STDIN = "archive/", "sources/", "stdin/"
CHUNK = 1 << 20
_NAMES = re.compile(
    r"record\.jsonl|token"
    r"|archive/\d{4}-\d\d-\d\d/[A-Za-z0-9%_~.-]+\.parquet"
    r"|sources/[0-9a-f]{64}"
    r"|stdin/[0-9a-f-]{36}(\.complete)?"
)
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError)
"""What reading a part of a damaged file raises."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BackupFailed(DtfError):
    """No backup was made, or nothing was restored."""


class BackupDamaged(DtfError):
    """A file is no backup, or not as it was written."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """How long a part is, and which SHA-256 it has."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a backup says of itself."""

    id: str
    farm: str
    version: str
    """Of dtf-lightning."""
    made: float
    """When its record was read, seconds since the epoch."""
    revision: int
    """Of etcd, at which all of the record was read."""
    tasks: int
    """That were not done."""
    missing: tuple[str, ...] = ()
    """Parts that open tasks need and that were not in the farm's folder."""
    format: int = FORMAT
    parts: Mapping[str, Part] = field(default_factory=dict)


Content = bytes | Iterable[bytes] | Callable[[], bytes]


def write_backup(path: Path, manifest: Manifest, parts: Iterable[tuple[str, Content]]) -> Manifest:
    """Write a backup; returns its manifest with all parts. Raises `BackupFailed` where the disk does not take it.

    Raises what reading a part raises; then there is no new file, and an old one is as it was.
    """
    written: dict[str, Part] = {}
    try:
        with whole_file(path, durable=True, private=True) as file, zipfile.ZipFile(file, "w") as archive:
            for name, content in parts:
                assert _NAMES.fullmatch(name), name
                written[name] = _add(archive, name, content)
            manifest = replace(manifest, parts=written)
            body = json.dumps(asdict(manifest), indent=1).encode()
            _add(archive, MANIFEST, body)
            archive.comment = hashlib.sha256(body).hexdigest().encode()
    except OSError as error:
        why = "the disk is full" if error.errno in _FULL else error.strerror or str(error)
        remedy = "make room there, or name a file on another disk" if error.errno in _FULL else "name another file"
        raise BackupFailed(
            f"the backup {path} could not be written: {why}. Nothing is left of it, and what was there before is as it was; "
            f"{remedy}"
        ) from error
    return manifest


def _add(archive: zipfile.ZipFile, name: str, content: Content) -> Part:
    if callable(content):
        content = content()
    chunks = [content] if isinstance(content, bytes) else content
    told, size = hashlib.sha256(), 0
    info = zipfile.ZipInfo(name)
    # Parquet and sources are packed already.
    info.compress_type = zipfile.ZIP_DEFLATED if name == RECORD else zipfile.ZIP_STORED
    info.external_attr = 0o600 << 16
    with archive.open(info, "w", force_zip64=True) as part:
        for chunk in chunks:
            told.update(chunk)
            size += len(chunk)
            part.write(chunk)
    return Part(size=size, sha256=told.hexdigest())


def record_lines(record: Iterable[Entry]) -> Iterator[bytes]:
    """Yield the record as lines of JSON, some hundred at a time. Values are text, but for bytes that are none (PEP 383)."""
    lines: list[str] = []
    for entry in record:
        lines.append(json.dumps([entry.key, entry.value.decode("utf-8", "surrogateescape")]))
        if len(lines) == 500:
            yield ("\n".join(lines) + "\n").encode()
            lines.clear()
    if lines:
        yield ("\n".join(lines) + "\n").encode()


class BackupFile:
    """A backup that is there. Raises `BackupDamaged` for a file that is none, or not as it was written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = contextlib.ExitStack()
        try:
            self._zip = self._stack.enter_context(zipfile.ZipFile(path))
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise self._damaged("it is none, or its end is missing") from error
        except OSError as error:
            raise BackupDamaged(f"the backup {path} cannot be read: {error.strerror or error}") from error
        try:
            self.manifest = self._read_manifest()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> BackupFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _read_manifest(self) -> Manifest:
        body = self._bytes(MANIFEST)
        if hashlib.sha256(body).hexdigest().encode() != self._zip.comment:
            raise self._damaged(f"{MANIFEST} was changed")
        try:
            told = json.loads(body)
            if told["format"] > FORMAT:
                raise BackupDamaged(
                    f"the backup {self._path} was made by dtf-lightning {told['version']} in format {told['format']}, and this "
                    f"release reads up to {FORMAT}: restore it with that release or a newer one"
                )
            parts = {name: Part(**part) for name, part in told["parts"].items()}
            manifest = Manifest(**{**told, "parts": parts, "missing": tuple(told["missing"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._damaged(f"{MANIFEST} is not one: {error!r}") from error
        if strange := sorted(name for name in parts if not _NAMES.fullmatch(name)):
            raise self._damaged(f"it has a part with the name {strange[0]!r}")
        there = sorted(self._zip.namelist())
        if there != sorted([*parts, MANIFEST]):
            raise self._damaged("it has other parts than it says")
        return manifest

    def verify(self) -> None:
        """Read all of it, and compare. Raises `BackupDamaged`."""
        for name in self.manifest.parts:
            for _ in self.chunks(name):
                pass

    def names(self, folder: str) -> list[str]:
        """Return the parts whose names begin so, sorted."""
        return sorted(name for name in self.manifest.parts if name.startswith(folder))

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a part. Raises `BackupDamaged` at its end, or before, where it is not as it was written."""
        expected, told, size = self.manifest.parts[name], hashlib.sha256(), 0
        try:
            with self._open(name) as part:
                while chunk := part.read(CHUNK):
                    told.update(chunk)
                    size += len(chunk)
                    yield chunk
        except _UNREADABLE as error:
            raise self._damaged(f"{name} cannot be read: {error}") from error
        if Part(size=size, sha256=told.hexdigest()) != expected:
            raise self._damaged(
                f"{name} has {size} bytes with the digest {told.hexdigest()[:12]}..., not those written"
            )

    def read(self, name: str) -> bytes:
        """Return a part. Raises as `chunks`."""
        return b"".join(self.chunks(name))

    def record(self) -> list[Entry]:
        """Return the record. Raises as `chunks`."""
        try:
            lines = [json.loads(line) for line in self.read(RECORD).splitlines()]
            return [Entry(key=key, value=value.encode("utf-8", "surrogateescape")) for key, value in lines]
        except (ValueError, TypeError, AttributeError) as error:
            raise self._damaged(f"{RECORD} is no record: {error!r}") from error

    def _bytes(self, name: str) -> bytes:
        try:
            with self._open(name) as part:
                return bytes(part.read())
        except _UNREADABLE as error:
            raise self._damaged(f"{name} cannot be read: {error}") from error

    def _open(self, name: str) -> IO[Any]:
        try:
            return self._zip.open(name)
        except (KeyError, NotImplementedError, RuntimeError) as error:
            raise self._damaged(f"{name} is not in it") from error

    def _damaged(self, why: str) -> BackupDamaged:
        return BackupDamaged(
            f"{self._path} is not a backup as `dtf farm backup` wrote it: {why}. Nothing was restored from it: take an earlier one"
        )
