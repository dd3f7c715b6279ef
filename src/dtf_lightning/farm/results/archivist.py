"""`Archivist`: moves results from etcd to the archive, and lets etcd forget them. The leader's coordinator runs it.

Rules that this file guards:
- Write first, then forget. A result is deleted from etcd only when a file has it that was written in this round, or that
  the archive has listed or given in this round; until then everything can be done again.
- Every write to etcd is guarded by what was seen (`record.writes`). So nothing here needs the leadership: two archivists,
  of which one is deposed and does not know it, lose nothing. At worst two files have the same results; each task is
  still one row in every database.
- An id outlives its result by a tombstone, for longer than a client may still submit under it.
- etcd's history is compacted up to where it was a round ago, never at its latest revision: whoever has just read the
  record can still watch from there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import ProtocolError, SettingsError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import time_of
from dtf_lightning.farm.record.values import KeyRecord, Tombstone
from dtf_lightning.farm.record.writes import Archive, ForgetKey, ForgetTombstone, Write
from dtf_lightning.farm.results.archive import ArchiveFolder, new_name
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tables import NotAnArchive, from_parquet, to_parquet
from dtf_lightning.farm.results.tombstones import prefixes_before

log = logging.getLogger(__name__)

FILE_ROWS = 50_000
"""Results of one file, at most: about 50 MB in memory."""
CHUNK = 500
"""Writes to etcd at once: a few transactions, so that other writes find their turn between them."""
WRITE_TIMEOUT = 60.0
"""Seconds for a chunk: longer than a lane tries (`record.lane.PATIENCE`)."""
PAGE = 10_000
DAY = 86400.0

WriteTo = Callable[[Write[Any]], "Future[Any]"]


@dataclass(frozen=True, kw_only=True)
class ArchiveSettings:
    """How long what is kept. Seconds."""

    interval: float = 60.0
    """Between two rounds."""
    keep: float = 600.0
    """For which etcd keeps a result after its coordinator has first seen it."""
    ids: float = 7 * DAY
    """For which a task may be submitted under an id, from the time that the id bears."""
    skew: float = 3600.0
    """By which clocks may differ."""
    tombstones: float = 8 * DAY
    """For which an archived task's id stays known."""
    tombstones_interval: float = 600.0
    """Between two looks at old tombstones."""
    keys_interval: float = 3600.0
    """Between two looks at idempotency keys, all of which are read. A key goes with its task's tombstone."""

    def __post_init__(self) -> None:
        least = self.ids + 2 * self.skew
        if self.tombstones < least:
            raise SettingsError(
                f"tombstones are kept for {self.tombstones:g} s, and ids may be submitted for {self.ids:g} s by clocks that "
                f"differ by {self.skew:g} s: a task could be accepted twice. Expected at least {least:g} s"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round has done."""

    files: int = 0
    """Files written."""
    archived: int = 0
    """Results in them."""
    forgotten: int = 0
    """Results that left etcd."""
    tombstones: int = 0
    """Ids that were forgotten."""
    keys: int = 0
    """Idempotency keys that were forgotten."""
    compacted: int = 0
    """The revision up to which etcd's history was compacted; 0 if it was not."""


@dataclass
class _Memory:
    """What it remembers between rounds. None of it is needed after a restart."""

    revision: int = 0
    """etcd's when the last round began."""
    compacted: int = 0
    tombstones_at: float | None = None
    """When old tombstones were last looked at, monotonic."""
    keys_at: float | None = None
    """Likewise the keys."""
    damaged: dict[str, str] = field(default_factory=dict)
    """File of the archive -> why it cannot be taken in."""


class Archivist:
    """Belongs to one thread, but for `damaged`.

    Args:
        results: of this coordinator.
        archive: where the files lie, for all coordinators.
        store: etcd.
        write: makes a guarded write, as `FarmRecord.write`.
        name: of the coordinator, for the names of files.
        read_again: lets the tail read etcd anew, where it turns out to be otherwise than the database has it.
    """

    def __init__(
        self,
        results: FarmResults,
        archive: ArchiveFolder,
        store: Store,
        keys: FarmKeys,
        write: WriteTo,
        *,
        settings: ArchiveSettings,
        name: str,
        read_again: Callable[[], object],
        clock: Clock | None = None,
    ) -> None:
        self._results = results
        self._archive = archive
        self._store = store
        self._keys = keys
        self._write = write
        self._settings = settings
        self._name = name
        self._read_again = read_again
        self._clock = clock or SystemClock()
        self._memory = _Memory()

    @property
    def damaged(self) -> dict[str, str]:
        """Files of the archive that cannot be taken in, and why."""
        return dict(self._memory.damaged)

    def read_archive(self) -> None:
        """Take in every file that the database does not know. Raises `ArchiveUnavailable`."""
        self._take_files(self._archive.names())

    def round(self) -> Round:
        """Archive what is new, forget what is old. Whatever it raises, the next round goes on where this one was.

        Raises `StoreError`, `ArchiveUnavailable`, and what DuckDB raises.
        """
        revision = self._store.range(self._keys.leader).revision
        # Known before the archive is listed: the tail takes in meanwhile what others have written since.
        noted, task = self._results.kept()
        there = self._archive.names(since=self._first_day(noted, task))
        self._take_files(there)
        if lost := self._results.forget_files(set(noted).difference(there)):
            log.warning("the archive has lost files with %d results that etcd still has: they are written again", lost)
        files, archived = self._archive_new()
        forgotten = self._forget_old()
        return Round(
            files=files,
            archived=archived,
            forgotten=forgotten,
            tombstones=self._forget_tombstones(),
            keys=self._forget_keys(),
            compacted=self._compact(revision),
        )

    def _first_day(self, noted: Sequence[str], task: str | None) -> str:
        """The day from which on files may have what etcd keeps, whoever wrote them.

        `noted`: those that have some of it; `task`: the first of it by its id.

        A result is archived after its task's id was made. When it was first seen here says nothing: this database may be
        younger than the file. A day is more than all clocks differ.
        """
        try:
            first = min(self._clock.wall(), time_of(task) if task is not None else math.inf) - DAY
        except SettingsError:
            return ""
        day = datetime.fromtimestamp(max(first, 0.0), UTC).date().isoformat()
        return min([day, *noted])

    def _take_files(self, names: Iterable[str]) -> None:
        known = self._results.known_files()
        for name in names:
            if name in known or name in self._memory.damaged:
                continue
            try:
                self._results.take_file(name, from_parquet(self._archive.read(name), name))
            except NotAnArchive as error:
                log.error("%s", error)
                self._memory.damaged[name] = str(error)

    def _archive_new(self) -> tuple[int, int]:
        files = archived = 0
        while (table := self._results.unarchived(FILE_ROWS)).num_rows:
            name = new_name(self._clock.wall(), self._name)
            self._archive.write(name, to_parquet(table))
            self._results.note_file(name, table)
            files += 1
            archived += table.num_rows
        return files, archived

    def _forget_old(self) -> int:
        forgotten = 0
        now = self._clock.wall()
        while batch := self._results.forgettable(now - self._settings.keep, CHUNK):
            writes = [
                Archive(
                    task=one.task,
                    seen=one.recorded,
                    tombstone=Tombstone(outcome=one.outcome, archived=now),
                    failed=one.failed,
                )
                for one in batch
            ]
            gone = [write.task for write, done in self._write_all(writes) if done]
            self._results.forget(gone)
            forgotten += len(gone)
            if len(gone) < len(batch):
                log.warning("etcd has other results than the database, which is compared with it")
                self._read_again()
                break
        return forgotten

    def _forget_tombstones(self) -> int:
        began = self._clock.monotonic()
        last = self._memory.tombstones_at
        if last is not None and began - last < self._settings.tombstones_interval:
            return 0
        before = self._clock.wall() - self._settings.tombstones
        forgotten = 0
        # A task's id may be older than its tombstone by any time, and younger by the clocks' difference.
        for prefix in prefixes_before(before + self._settings.skew):
            found = self._store.range(self._keys.folder(Kind.TOMBSTONE) + prefix, page_size=PAGE).kvs
            old = [kv for kv in found if _archived(kv.value) < before]
            for start in range(0, len(old), CHUNK):
                writes = []
                for kv in old[start : start + CHUNK]:
                    parsed = self._keys.parse(kv.key)
                    assert parsed is not None
                    writes.append(ForgetTombstone(task=parsed[1][0], seen=kv.mod_revision))
                forgotten += sum(done for _, done in self._write_all(writes))
        self._memory.tombstones_at = began
        return forgotten

    def _forget_keys(self) -> int:
        began = self._clock.monotonic()
        last = self._memory.keys_at
        if last is not None and began - last < self._settings.keys_interval:
            return 0
        before = self._clock.wall() - self._settings.tombstones
        found = self._store.range(self._keys.folder(Kind.KEY), page_size=PAGE).kvs
        old = [(kv, task) for kv in found if (task := _old_task(kv.value, before)) is not None]
        forgotten = 0
        for start in range(0, len(old), CHUNK):
            writes = []
            for kv, task in old[start : start + CHUNK]:
                parsed = self._keys.parse(kv.key)
                assert parsed is not None
                writes.append(ForgetKey(key=parsed[1][0], seen=kv.mod_revision, task=task))
            forgotten += sum(done for _, done in self._write_all(writes))
        self._memory.keys_at = began
        return forgotten

    def _compact(self, revision: int) -> int:
        """`revision`: etcd's when this round began."""
        behind = min(self._memory.revision, revision - 1)
        self._memory.revision = revision
        if behind <= self._memory.compacted:
            return 0
        self._store.maintenance.compact(behind)
        self._memory.compacted = behind
        return behind

    def _write_all(self, writes: Sequence[Any]) -> list[tuple[Any, bool]]:
        """Make writes, and return each with its verdict. Raises what one of them raises, when all have ended."""
        futures = [self._write(write) for write in writes]
        told = [(write, future.exception(WRITE_TIMEOUT)) for write, future in zip(writes, futures, strict=True)]
        for _, error in told:
            if error is not None:
                raise error
        return [(write, bool(future.result())) for write, future in zip(writes, futures, strict=True)]


def _old_task(value: bytes, before: float) -> str | None:
    """The task that a key names, if its id was made before this moment."""
    try:
        record = decode(Kind.KEY, value)
        assert isinstance(record, KeyRecord)
        return record.task if time_of(record.task) < before else None
    except (ProtocolError, SettingsError):
        return None


def _archived(value: bytes) -> float:
    """When a tombstone was written; never, for one that this release cannot read."""
    try:
        tombstone = decode(Kind.TOMBSTONE, value)
    except ProtocolError:
        return float("inf")
    assert isinstance(tombstone, Tombstone)
    return tombstone.archived
