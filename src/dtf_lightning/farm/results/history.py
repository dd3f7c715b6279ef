"""`History`: what a coordinator knows of tasks that are done: its database, the tail that fills it, and the archivist.

Each coordinator has a database of its own, and they all have the same rows; the archive is one for all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.database.connection import DatabaseError
from dtf_lightning.errors import DtfError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import Envelope
from dtf_lightning.farm.results.archive import open_archive
from dtf_lightning.farm.results.archivist import ArchiveSettings, Archivist, Round
from dtf_lightning.farm.results.query import Answer, query
from dtf_lightning.farm.results.store import NEWEST, FarmResults, ResultsBusy, Wanted
from dtf_lightning.farm.results.tail import Health, ResultsTail
from dtf_lightning.farm.rules.expectations import Sample
from dtf_lightning.farm.rules.paging import Order, Place

log = logging.getLogger(__name__)
T = TypeVar("T")

FRESH = 2.0
"""Seconds that a question waits for what this coordinator was told before it."""
CLOSE_TIMEOUT = 5.0
"""Seconds for the round that is under way; what is left of it the next leader does."""
LATE = 10
"""Rounds without success after which that is critical: by then etcd holds twice what it should."""


@dataclass(frozen=True, kw_only=True)
class HistoryPlace:
    """Where a coordinator keeps what it knows."""

    folder: Path
    """Of the farm's files."""
    coordinator: str
    archive: str = ""
    """A local path or an fsspec URL; "": `archive` in the folder."""
    file: Path | None = None
    """Of this coordinator's database; `None`: in the folder."""

    @property
    def database(self) -> Path:
        """The file of this coordinator."""
        return self.file or self.folder / f"results-{quote(self.coordinator, safe='')}.duckdb"

    @property
    def archive_url(self) -> str:
        """Where the archive lies."""
        return self.archive or str(self.folder / "archive")


class History:
    """Thread-safe. `take` and `read_again` never wait; all that answers a question does: call that from a thread."""

    def __init__(
        self,
        store: Store,
        record: FarmRecord,
        place: HistoryPlace,
        *,
        settings: ArchiveSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._store = store
        self._record = record
        self._place = place
        self._settings = settings or ArchiveSettings()
        self._clock = clock or SystemClock()
        self._parts: tuple[FarmResults, ResultsTail, ArchivistThread] | None = None

    def open(self) -> None:
        """Open the database, and begin to fill it. Call it before anything is told.

        Raises `SettingsError` for a file of another program or of a newer version, or one that stays in use, and
        `ArchiveUnavailable` for an archive that nothing installed here can reach.
        """
        archive = open_archive(self._place.archive_url)
        self._place.folder.mkdir(parents=True, exist_ok=True)
        results = FarmResults(self._place.database)
        archivist = Archivist(
            results,
            archive,
            self._store,
            self._record.keys,
            self._record.write,
            settings=self._settings,
            name=self._place.coordinator,
            read_again=self.read_again,
            clock=self._clock,
        )
        keys = self._record.keys
        tail = ResultsTail(results, self._store, keys, read_archive=archivist.read_archive, clock=self._clock)
        thread = ArchivistThread(archivist, self._settings.interval, self._clock)
        self._parts = results, tail, thread
        tail.start()
        thread.start()

    def close(self) -> None:
        """Write what waits, and end. Idempotent."""
        if self._parts is None:
            return
        results, tail, thread = self._parts
        self._parts = None
        thread.close()
        tail.close()
        results.close()

    # --- what the coordinator tells ----------------------------------------------------------------------------------

    def take(self, change: Change) -> None:
        """The watch has shown a change."""
        if self._parts is not None:
            self._parts[1].take(change)

    def read_again(self) -> None:
        """The watch begins, or begins anew."""
        if self._parts is not None:
            self._parts[1].read_again()

    def lead(self, leads: bool) -> None:
        """Whether this coordinator leads, and so archives."""
        if self._parts is not None:
            self._parts[2].lead(leads)

    # --- questions ---------------------------------------------------------------------------------------------------

    def envelope(self, task: str) -> Envelope | None:
        """The result of a task that etcd has forgotten; `None` for one that nobody knows. Raises `ResultsBusy`."""
        return self._open_parts()[0].envelope(task)

    def of_plan(self, plan: str) -> list[tuple[str, str, str, str]]:
        """As `FarmResults.of_plan`, with all that this coordinator was told. Raises `ResultsBusy` where that takes long."""
        results, tail, _ = self._open_parts()
        if not tail.catch_up(FRESH):
            raise ResultsBusy("the database of results is behind")
        return results.of_plan(plan)

    def alike(
        self, project: str, name: str, command: Sequence[str], limit: int
    ) -> list[tuple[str, str, str, list[str], str]]:
        """As `FarmResults.alike`."""
        return self._fresh().alike(project, name, command, limit)

    def reusable(self, fingerprints: Sequence[str]) -> dict[str, tuple[str, Envelope]]:
        """As `FarmResults.reusable`, with what this coordinator was told before."""
        return self._fresh().reusable(fingerprints)

    def page(
        self, wanted: Wanted, *, limit: int, order: Order = NEWEST, behind: Place | None = None
    ) -> list[dict[str, Any]]:
        """As `FarmResults.page`."""
        return self._fresh().page(wanted, limit=limit, order=order, behind=behind)

    def outcomes(self, plan: str, without: Sequence[str] = ()) -> dict[str, int]:
        """As `FarmResults.outcomes`."""
        return self._fresh().outcomes(plan, without)

    def projects(self, plan: str) -> list[str]:
        """As `FarmResults.projects`."""
        return self._fresh().projects(plan)

    def durations(self) -> list[Sample]:
        """As `FarmResults.durations`. Raises `ResultsBusy` where the database does not answer."""
        try:
            return self._open_parts()[0].durations()
        except DatabaseError as error:
            raise ResultsBusy(f"the database of results: {error}") from error

    def ask(self, question: Callable[[FarmResults], T]) -> T:
        """Return what a question answers that is put to the database, with what this coordinator was told before."""
        return question(self._fresh())

    def query(self, sql: str) -> Answer:
        """As `results.query.query`."""
        return query(self._fresh(), sql)

    def status(self) -> dict[str, Any]:
        """How tail and archive are, as the API shows it."""
        if self._parts is None:
            return {"health": Health.CRITICAL.value, "reason": "the database of results is not open"}
        _, tail, archivist = self._parts
        told, archive = tail.status(), archivist.status()
        worst = max((told.health, archive["health"]), key=list(Health).index)
        return {
            "health": worst.value,
            "reason": told.reason if worst is told.health else archive["reason"],
            "waiting": told.waiting,
            "written": told.written,
            "readings": told.readings,
            "unreadable": told.unreadable,
            "archive": archive | {"health": archive["health"].value},
        }

    def _fresh(self) -> FarmResults:
        """The database, with what this coordinator was told before."""
        results, tail, _ = self._open_parts()
        tail.catch_up(FRESH)
        return results

    def _open_parts(self) -> tuple[FarmResults, ResultsTail, ArchivistThread]:
        if self._parts is None:
            raise ResultsBusy("the database of results is not open")
        return self._parts


class ArchivistThread:
    """Lets an archivist do its rounds while it leads. A round that fails is tried again at its next time."""

    def __init__(self, archivist: Archivist, interval: float, clock: Clock) -> None:
        self._archivist = archivist
        self._interval = interval
        self._clock = clock
        self._changed = threading.Condition()
        # Under its lock:
        self._leads = False
        self._closing = False
        self._last: Round | None = None
        self._last_good: float | None = None
        self._failures = 0
        self._problem = ""
        self._dead = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-farm-archive")

    def start(self) -> None:
        """Wait for the leadership, in a thread of its own."""
        self._thread.start()

    def lead(self, leads: bool) -> None:
        """Archive from now on, or no more."""
        with self._changed:
            self._leads = leads
            self._changed.notify_all()

    def close(self) -> None:
        """End, after the round that is under way. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)

    def status(self) -> dict[str, Any]:
        """How it is; `health` is a `Health`."""
        damaged = self._archivist.damaged
        with self._changed:
            health, reason = Health.HEALTHY, "archives" if self._leads else "another coordinator archives"
            if self._dead:
                health, reason = Health.CRITICAL, f"nothing is archived any more: {self._problem}"
            elif self._leads and self._failures:
                health = Health.CRITICAL if self._failures >= LATE else Health.WARNING
                reason = f"{self._failures} rounds have failed, the last with: {self._problem}"
            elif damaged:
                health, reason = Health.WARNING, next(iter(damaged.values()))
            last = self._last
            return {
                "health": health,
                "reason": reason,
                "last_round": self._last_good,
                "archived": last.archived if last else 0,
                "forgotten": last.forgotten if last else 0,
                "compacted": last.compacted if last else 0,
            }

    def _run(self) -> None:
        try:
            while self._wait_for_round():
                self._round()
        except BaseException as error:
            log.exception("nothing is archived any more")
            with self._changed:
                self._dead, self._problem = True, f"{type(error).__name__}: {error}"

    def _wait_for_round(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._leads or self._closing)
            return not self._closing

    def _round(self) -> None:
        began = self._clock.monotonic()
        try:
            done = self._archivist.round()
        except (DtfError, OSError, TimeoutError, DatabaseError) as error:
            log.warning("a round of the archive has failed, the next one goes on: %s", error)
            with self._changed:
                self._failures += 1
                self._problem = str(error) or type(error).__name__
        else:
            with self._changed:
                self._last, self._last_good, self._failures, self._problem = done, self._clock.wall(), 0, ""
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(0.0, began + self._interval - self._clock.monotonic()))
