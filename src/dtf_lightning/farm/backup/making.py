"""Makes a backup of a farm that runs, or of one whose coordinators are gone.

Rules that this file guards:
- The record is read at one revision of etcd, so that it is a moment of the farm as it was.
- The record first, then the archive's listing: what had left etcd by then was in a file before. What the archive knows beyond
  that moment is sorted out by `returning`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from dtf_lightning import __version__
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.backup.backup_file import (
    ARCHIVE,
    CHUNK,
    RECORD,
    SOURCES,
    STDIN,
    TOKEN,
    BackupFailed,
    Content,
    Manifest,
    record_lines,
    write_backup,
)
from dtf_lightning.farm.backup.places import FarmPlaces
from dtf_lightning.farm.backup.returning import Entry, needed
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.results.archive import open_archive
from dtf_lightning.farm.tokens import read_token

PAGE = 10_000
READING = 300.0
"""Seconds for reading the record; a million keys take half a minute."""


def make_backup(store: Store, places: FarmPlaces, path: Path, *, now: float) -> Manifest:
    """Write a backup of a farm; return what it says of itself.

    Raises `BackupFailed` for a farm that has no record, and where the disk does not take the file; `ArchiveUnavailable`,
    `SettingsError` for a token that cannot be read, and what etcd raises. Then there is no new file.
    """
    keys = FarmKeys(places.farm)
    read = store.range(keys.prefix, page_size=PAGE, timeout=READING)
    if any(kv.key == keys.restoring for kv in read.kvs):
        raise BackupFailed(f"the farm {places.farm!r} is being restored: back it up when `dtf farm restore` has ended")
    if not read.kvs:
        raise BackupFailed(
            f"etcd has nothing of a farm named {places.farm!r}: say which is meant with --farm-name, and which etcd with --endpoint"
        )
    record = [Entry(key=kv.key.removeprefix(keys.prefix), value=kv.value) for kv in read.kvs]
    archive = open_archive(places.archive)
    listed = archive.names()
    files, missing = _files(places.folder, keys, record)
    tasks = keys.folder(Kind.TASK)

    def parts() -> Iterator[tuple[str, Content]]:
        yield RECORD, record_lines(record)
        for name in listed:
            yield ARCHIVE + name, lambda name=name: archive.read(name)  # type: ignore[misc]
        for name, file in files:
            yield name, _read(file)
        if places.token_file is not None:
            yield TOKEN, (read_token(places.token_file) + "\n").encode()

    return write_backup(
        path,
        Manifest(
            id=secrets.token_hex(8),
            farm=places.farm,
            version=__version__,
            made=now,
            revision=read.revision,
            tasks=sum(kv.key.startswith(tasks) for kv in read.kvs),
            missing=tuple(missing),
        ),
        parts(),
    )


def _files(folder: Path, keys: FarmKeys, record: list[Entry]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Return the parts that open tasks have in the farm's folder, and names of those that are not there."""
    wanted = needed(keys, record)
    found: list[tuple[str, Path]] = []
    missing: list[str] = []
    for digest in sorted(wanted.sources):
        path = folder / "sources" / digest
        if path.exists():
            found.append((SOURCES + digest, path))
        else:
            missing.append(SOURCES + digest)
    for task in sorted(wanted.stdin):
        names = (task, f"{task}.complete")
        found += [(STDIN + name, folder / "stdin" / name) for name in names if (folder / "stdin" / name).exists()]
    return found, missing


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
