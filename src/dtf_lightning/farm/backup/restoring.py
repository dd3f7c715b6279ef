"""Puts a backup into an empty etcd and an empty, or the old, folder.

Rules that this file guards:
- Nothing is written before all of the backup is read and compared, and all that speaks against it is asked: an etcd that has
  something of this farm (a coordinator that lives among it), another token, an archive that differs, databases of before.
- While it goes on, a key says so (`FarmKeys.restoring`): coordinators do not start. Every write is guarded by it, and the last
  one deletes it, if no coordinator has come. What was killed half-way is begun anew by the same command, with the same file.
- Files first, the record last: an open task has its source when somebody can see the task.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.store import Compare, Delete, Operation, Put, Store
from dtf_lightning.farm.backup.backup_file import (
    ARCHIVE,
    SOURCES,
    STDIN,
    TOKEN,
    BackupFailed,
    BackupFile,
    Manifest,
)
from dtf_lightning.farm.backup.places import FarmPlaces
from dtf_lightning.farm.backup.returning import Entry, Returning, returning
from dtf_lightning.farm.record.guarded import absent
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import time_of
from dtf_lightning.farm.results.archive import ArchiveFolder, open_archive
from dtf_lightning.farm.results.tables import NotAnArchive, from_parquet, outcomes_in
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.whole_files import whole_file, write_whole

NUM_PUTS, NUM_BYTES = 100, 1_000_000
"""Of a transaction, at most."""
READING = 60.0
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What came back."""

    manifest: Manifest
    returning: Returning
    files: int
    """Of the archive that were written; others were there already."""
    damaged: tuple[str, ...] = ()
    """What is wrong with files of the archive that cannot be read."""


def restore_backup(
    store: Store, places: FarmPlaces, path: Path, *, now: float, forget_tokens: bool = False
) -> Restored:
    """Restore a farm, under the name that `places` say; return what came back.

    Raises `BackupDamaged`, `BackupFailed` where something speaks against it, `ArchiveUnavailable`, `OSError`, and what etcd
    raises. Only after the latter three may something have been written: then the same command begins anew.
    """
    keys = FarmKeys(places.farm)
    with BackupFile(path) as backup:
        backup.verify()
        archive = open_archive(places.archive)
        there = set(archive.names())
        new = [name for name in backup.names(ARCHIVE) if name.removeprefix(ARCHIVE) not in there]
        _refuse_other_files(backup, archive, there)
        _refuse_databases(places)
        _refuse_another_token(backup, places.token_file)
        record = backup.record()
        archived, damaged = _archived(backup, archive, there, keys, record)
        written = returning(keys, record, archived, now=now, forget_tokens=forget_tokens)
        mark = _begin(store, keys, backup.manifest)
        _write_token(backup, places.token_file)
        for name in new:
            archive.write(name.removeprefix(ARCHIVE), backup.read(name))
        _write_files(backup, places.folder)
        for batch in _batches(keys, written.entries):
            _write(store, keys, mark, batch)
        _finish(store, keys, mark)
    return Restored(manifest=backup.manifest, returning=written, files=len(new), damaged=damaged)


# --- what speaks against it ------------------------------------------------------------------------------------------


def _refuse_other_files(backup: BackupFile, archive: ArchiveFolder, there: set[str]) -> None:
    for part in backup.names(ARCHIVE):
        name = part.removeprefix(ARCHIVE)
        if name in there and hashlib.sha256(archive.read(name)).hexdigest() != backup.manifest.parts[part].sha256:
            raise BackupFailed(
                f"the archive has a file {name} with another content than the backup: one of the two is damaged, or the archive is "
                "another farm's. Restore into another --archive, or move that file away"
            )


def _refuse_databases(places: FarmPlaces) -> None:
    """A database knows results by an etcd that is gone, and perhaps of tasks that are going to run again."""
    found = sorted(places.folder.glob("results-*.duckdb"))
    if places.database is not None and places.database.exists():
        found.append(places.database)
    if found:
        raise BackupFailed(
            f"there are databases of results from before, which are made anew of what comes back: `rm {' '.join(map(str, found))}`, and "
            "those of the coordinators on other hosts, then restore again"
        )


def _refuse_another_token(backup: BackupFile, file: Path | None) -> None:
    if TOKEN not in backup.manifest.parts or file is None or not file.exists():
        return
    if read_token(file).encode() != backup.read(TOKEN).strip():
        raise BackupFailed(
            f"{file} holds another token than the backup: tokens that the farm has signed are opened by its own alone. Move the "
            "file away, or name another one with --token-file"
        )


def _begin(store: Store, keys: FarmKeys, manifest: Manifest) -> bytes:
    """Note that this backup is being restored; return the note. Raises `BackupFailed` for a farm that is not empty."""
    mark = json.dumps({"v": 1, "backup": manifest.id}).encode()
    found = store.range(keys.prefix, page_size=10_000, timeout=READING).kvs
    other = [kv.key for kv in found if kv.key != keys.restoring]
    begun = next((kv.value for kv in found if kv.key == keys.restoring), None)
    live = [
        keys.parse(key)[1][0]  # type: ignore[index]
        for key in other
        if key.startswith(keys.folder(Kind.COORDINATOR))
    ]
    if live:
        raise BackupFailed(
            f"coordinators of the farm {keys.farm!r} are there ({', '.join(sorted(live))}): stop them all; one that was killed is gone "
            "after some seconds"
        )
    if begun == mark:
        _write(store, keys, mark, [Delete(keys.folder(kind), prefix=True) for kind in Kind if kind is not Kind.LEADER])
        return mark
    if begun is not None:
        raise BackupFailed(
            f"another backup is being restored into the farm {keys.farm!r}, or was and did not end: end it with the same file"
        )
    if other:
        raise BackupFailed(
            f"etcd has {len(other)} keys of a farm {keys.farm!r} (such as {other[0]}): a backup is restored where there is nothing. Name "
            "another etcd (--endpoint) or another farm (--farm-name); `etcdctl del --prefix "
            f"{keys.prefix}` deletes what is there"
        )
    if not store.txn([absent(keys.restoring), absent(keys.leader)], [Put(keys.restoring, mark)]).succeeded:
        raise _changed(keys)
    return mark


def _write(store: Store, keys: FarmKeys, mark: bytes, operations: Sequence[Operation]) -> None:
    """Write a part of the record; made twice it is made once. Raises `BackupFailed` where the note is not ours any more."""
    guard = (Compare(keys.restoring, "value", "=", mark), absent(keys.leader))
    if not store.txn(guard, operations, timeout=READING).succeeded:
        raise _changed(keys)


def _finish(store: Store, keys: FarmKeys, mark: bytes) -> None:
    if store.count(keys.folder(Kind.COORDINATOR)):
        raise _changed(keys)
    _write(store, keys, mark, [Delete(keys.restoring)])


def _changed(keys: FarmKeys) -> BackupFailed:
    return BackupFailed(
        f"somebody else has written to the farm {keys.farm!r} meanwhile (a coordinator that was started, another restore): stop it, and "
        "restore again with the same file"
    )


# --- what is written -------------------------------------------------------------------------------------------------


def _archived(
    backup: BackupFile, archive: ArchiveFolder, there: set[str], keys: FarmKeys, record: Iterable[Entry]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return how tasks of the record ended of which the archive has results, the backup's files or others, and what is damaged."""
    tasks = {
        parsed[1][0]
        for entry in record
        if (parsed := keys.parse(keys.prefix + entry.key)) is not None and parsed[0] in (Kind.TASK, Kind.DONE)
    }
    if not tasks:
        return {}, ()
    since = _first_day(tasks)
    found: dict[str, str] = {}
    damaged: list[str] = []
    for name in sorted({*there, *(part.removeprefix(ARCHIVE) for part in backup.names(ARCHIVE))}):
        if name >= since:
            data = archive.read(name) if name in there else backup.read(ARCHIVE + name)
            try:
                ended = outcomes_in(from_parquet(data, name))
            except NotAnArchive as error:  # a coordinator names it in its status, and goes on; so does this
                damaged.append(str(error))
            else:
                found.update((task, how) for task, how in ended if task in tasks)
    return found, tuple(damaged)


def _first_day(tasks: Iterable[str]) -> str:
    """The day before which no file can have a result of these: ids carry the time at which they were made."""
    try:
        first = min(map(time_of, tasks))
    except SettingsError:
        return ""
    return datetime.fromtimestamp(max(first - DAY, 0.0), UTC).date().isoformat()


def _write_token(backup: BackupFile, file: Path | None) -> None:
    if TOKEN in backup.manifest.parts and file is not None and not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(file, backup.read(TOKEN), durable=True, private=True)


def _write_files(backup: BackupFile, folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in [*backup.names(SOURCES), *backup.names(STDIN)]:
        place = folder / name
        if name.startswith(SOURCES) and place.exists():
            continue  # its name is its digest
        place.parent.mkdir(exist_ok=True)
        with whole_file(place, durable=True, private=name.startswith(STDIN)) as file:
            for chunk in backup.chunks(name):
                file.write(chunk)


def _batches(keys: FarmKeys, entries: Iterable[Entry]) -> Iterator[list[Operation]]:
    batch: list[Operation] = []
    size = 0
    for entry in entries:
        length = len(keys.prefix) + len(entry.key) + len(entry.value)
        if batch and (len(batch) == NUM_PUTS or size + length > NUM_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(Put(keys.prefix + entry.key, entry.value))
        size += length
    if batch:
        yield batch
