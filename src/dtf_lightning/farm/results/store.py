"""`FarmResults`: a farm's results in DuckDB: rows are added; questions are answered beside that.

Rules that this file guards:
- A task is one row, however often and from wherever it is seen (watch, etcd, archive): the first time counts. Nothing in it
  changes but `file`, which names a file of the archive that has it: also where the file was seen before the result.
- `kept` holds what is in etcd; a result leaves it only when etcd has forgotten it. A result is forgotten only when its
  `file` is known.
- One writer at a time, whose change is whole or not at all. Readers have connections of their own, see what is
  committed, can change nothing, and reach no file of this machine.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from dtf_lightning.database.connection import LOCK_PATIENCE, Connection, DatabaseError, transaction
from dtf_lightning.database.database import Database
from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.results.rows import SeenFailure, SeenResult, envelope_of, moment, stored
from dtf_lightning.farm.results.schema import RESULTS
from dtf_lightning.farm.results.tables import FAILURE, RESULT, failure_table, result_table, task_table
from dtf_lightning.farm.rules.expectations import LATEST, Sample
from dtf_lightning.farm.rules.paging import LAST, Order, Place

SAMPLED = 100_000
"""Tasks of which it is asked how long they took."""
GROUPS = 20_000
"""Kinds of tasks of which that is told."""
CLASSES = 4
"""Device classes of which there should be enough runs among those that are told of a kind."""
NUM_READERS = 4
"""Questions that are answered at once."""
READER_PATIENCE = 10.0
"""Seconds for which a question waits for its turn."""
LAST_ANSWERS = 2.0
"""Seconds for questions that are being answered when the database closes."""
INTERRUPT = 0.1
"""Seconds between two tries to end one that takes longer: DuckDB ends nothing that is just about to begin."""
MEMORY = "512MB"
"""For the whole database: a coordinator has other things to do."""
THREADS = 2

_LIMITS = (
    f"SET memory_limit = '{MEMORY}'",
    f"SET threads = {THREADS}",
    "SET python_enable_replacements = false",  # a name in a question is no variable of this program
    "SET autoinstall_known_extensions = false",  # nor a reason to fetch something
    "SET autoload_known_extensions = false",
    "SET enable_external_access = false",  # nor a file of this machine
    "SET lock_configuration = true",
)
_COLUMNS = ", ".join(RESULT.names)
_FAILURE_COLUMNS = ", ".join(FAILURE.names)


class Status(Enum):
    """How a task ended, in the words of the requirements."""

    SUCCESS = "success"
    """It completed."""
    PARTIAL = "partial"
    """It was ended from outside (cancelled, or over its time), and has left counts, metrics or files."""
    FAILURE = "failure"
    """All else."""


HARDWARE = ("cpu_seconds", "peak_memory")
"""Metrics that the worker itself adds to every attempt."""

_STATUS = f"""
    CASE WHEN outcome = '{TaskOutcome.COMPLETED.value}' THEN '{Status.SUCCESS.value}'
    WHEN (outcome = '{TaskOutcome.CANCELLED.value}' OR kind = 'timeout') AND (
        cardinality(counts) > 0 OR cardinality(artifacts) > 0
        OR len(list_intersect(map_keys(metrics), {list(HARDWARE)})) < cardinality(metrics)
    ) THEN '{Status.PARTIAL.value}' ELSE '{Status.FAILURE.value}' END
"""


class ResultsBusy(StoreUnavailable):
    """The database of results does not answer now: too many ask, or it is not open, or out of order. Ask again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgettable:
    """A result that is in the archive and still in etcd."""

    task: str
    recorded: int
    outcome: TaskOutcome
    failed: tuple[int, ...]
    """Numbers of its attempts that failed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """Which results are asked for; "" and `None` ask nothing. Times are those of the end, seconds since the epoch."""

    task: str = ""
    worker: str = ""
    status: Status | None = None
    outcome: TaskOutcome | None = None
    project: str = ""
    plan: str = ""
    name: str = ""
    search: str = ""
    """What stands in the name or the command, small and capital letters alike, or how the task's id begins."""
    since: float | None = None
    until: float | None = None
    created_after: float | None = None
    """Of the submission, as the next one."""
    created_before: float | None = None


_KEYS = {
    "created": "task",
    "started": f"coalesce(epoch_us(started), {LAST})",
    "ended": f"coalesce(epoch_us(ended), {LAST})",
    "name": "name",
    "project": "project",
    "outcome": "outcome",
    "status": _STATUS,
    "worker": "coalesce(workers[1], '')",
    "recorded": "recorded",
}
SORTED_BY: dict[str, type] = {name: int if name in ("started", "ended", "recorded") else str for name in _KEYS}
"""What results can be sorted by, and of which type the keys are; `created` is by the ids, which carry their time;
`recorded` by the record's revision."""
NEWEST = Order("created", descending=True)


class FarmResults:
    """Thread-safe.

    Args:
        path: the database's file, which is created; `:memory:` for one that is not kept.
        patience: seconds to wait for another process that has the file open.

    Raises:
        SettingsError: a file of another program or of a newer version, or one that stays in use.
    """

    def __init__(self, path: str | Path = ":memory:", *, patience: float = LOCK_PATIENCE) -> None:
        self._database = Database(RESULTS, path, patience=patience)
        self._writer = self._database.connection
        for limit in _LIMITS:
            self._writer.execute(limit)
        self._writing = threading.Lock()
        self._readers: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self._all_readers = [self._writer.cursor() for _ in range(NUM_READERS)]
        for reader in self._all_readers:
            self._readers.put(reader)
        self._closed = False

    def close(self) -> None:
        """Wait for the change and the questions that are under way, and close; a question that takes long is ended. Idempotent."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            deadline = time.monotonic() + LAST_ANSWERS
            for _ in self._all_readers:
                self._take_back(deadline)
            for reader in self._all_readers:
                reader.close()
            self._database.close()

    def _take_back(self, deadline: float) -> None:
        """Take a connection that answers nothing any more; from the deadline on end what is being answered."""
        while True:
            left = deadline - time.monotonic()
            try:
                self._readers.get(timeout=left if left > 0 else INTERRUPT)
                return
            except queue.Empty:
                if left < -READER_PATIENCE:
                    raise
                for reader in self._all_readers:
                    reader.interrupt()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Inside, ask this connection; it can change nothing. Raises `ResultsBusy`, also for what DuckDB raises inside."""
        try:
            reader = self._readers.get(timeout=READER_PATIENCE)
        except queue.Empty:
            raise ResultsBusy(
                f"{NUM_READERS} questions are being answered, and none ended in {READER_PATIENCE:g} s"
            ) from None
        try:
            reader.execute("BEGIN TRANSACTION READ ONLY")
            try:
                yield reader
            finally:
                reader.execute("ROLLBACK")
        except DatabaseError as error:
            raise ResultsBusy(f"the database of results does not answer: {error}") from error
        finally:
            self._readers.put(reader)

    @contextmanager
    def _change(self, **tables: Any) -> Iterator[Connection]:
        """Inside, one transaction of the only writer, which sees these Arrow tables by their names."""
        with self._writing:
            for name, table in tables.items():
                self._writer.register(name, table)
            try:
                with transaction(self._writer):
                    yield self._writer
            finally:
                for name in tables:
                    self._writer.unregister(name)

    # --- what etcd shows ---------------------------------------------------------------------------------------------

    def take_in(
        self, results: Sequence[SeenResult], failures: Sequence[SeenFailure] = (), forgotten: Iterable[str] = ()
    ) -> None:
        """Add what the watch has shown. `forgotten`: tasks whose results have gone from etcd, perhaps of `results`."""
        gone = set(forgotten)
        tables: dict[str, Any] = {"shown": result_table(results)} if results else {}
        tables |= {"failed": failure_table(failures)} if failures else {}
        tables |= {"gone": task_table(gone)} if gone else {}
        with self._change(**tables) as writer:
            if failures:
                _add_failures(writer)
            if results:
                _add_results(writer)
            if gone:
                writer.execute("DELETE FROM farm.kept WHERE task IN (FROM gone)")

    def take_reading(self, results: Sequence[SeenResult], failures: Sequence[SeenFailure]) -> None:
        """Add all that etcd holds at one revision: what is not among it, etcd has forgotten."""
        with self._change(shown=result_table(results), failed=failure_table(failures)) as writer:
            _add_failures(writer)
            _add_results(writer)
            writer.execute("DELETE FROM farm.kept WHERE task NOT IN (SELECT task FROM shown)")

    def forget(self, tasks: Iterable[str]) -> None:
        """Etcd has forgotten these results."""
        self.take_in((), (), tasks)

    # --- the archive -------------------------------------------------------------------------------------------------

    def known_files(self) -> set[str]:
        """The archive's files whose results are here."""
        with self.reading() as reader:
            return {name for (name,) in reader.execute("SELECT file FROM farm.archive_files").fetchall()}

    def take_file(self, file: str, table: Any) -> None:
        """Add what is in a file of the archive (`tables.ARCHIVED`). No error if it is known."""
        with self._change(filed=table) as writer:
            writer.execute(
                f"INSERT OR IGNORE INTO farm.results ({_COLUMNS}, file) SELECT {_COLUMNS}, ? FROM filed", [file]
            )
            writer.execute(f"""
                INSERT OR IGNORE INTO farm.failed_attempts ({_FAILURE_COLUMNS})
                SELECT task, attempt.number, attempt.revision, attempt.workers, attempt.reason, attempt.ended
                FROM (SELECT task, unnest(failed_attempts) AS attempt FROM filed)
            """)
            _note_file(writer, file)

    def unarchived(self, limit: int) -> Any:
        """Results that no file has, by their ids, as a `pyarrow.Table` of the columns `tables.ARCHIVED`."""
        columns = ", ".join(f"r.{name}" for name in RESULT.names)
        with self.reading() as reader:
            return reader.sql(
                f"""
                WITH chosen AS (
                    SELECT task FROM farm.kept JOIN farm.results USING (task) WHERE file IS NULL
                    ORDER BY task LIMIT {limit:d}
                ),
                failed AS (
                    SELECT task, list({{number: number, revision: revision, workers: workers, reason: reason,
                        ended: ended}} ORDER BY number) AS attempts
                    FROM farm.failed_attempts SEMI JOIN chosen USING (task) GROUP BY task
                )
                SELECT {columns}, f.attempts AS failed_attempts
                FROM farm.results r SEMI JOIN chosen ON r.task = chosen.task LEFT JOIN failed f ON f.task = r.task
                ORDER BY r.task
                """
            ).to_arrow_table()

    def note_file(self, file: str, table: Any) -> None:
        """A file with these results is in the archive now."""
        with self._change(filed=table) as writer:
            _note_file(writer, file)

    def forget_files(self, files: Iterable[str]) -> int:
        """The archive has lost these files: what etcd still keeps of them must be written again. Returns how much."""
        with self._change(gone=task_table(files)) as writer:
            changed = writer.execute("""
                UPDATE farm.results SET file = NULL
                WHERE task IN (SELECT task FROM farm.kept) AND file IN (SELECT task FROM gone)
            """).fetchall()
            return int(changed[0][0])

    def kept(self) -> tuple[list[str], str | None]:
        """Of what etcd keeps: the files that have it, and the first task by its id."""
        with self.reading() as reader:
            ((files, task),) = reader.execute(
                "SELECT list(DISTINCT file) FILTER (file IS NOT NULL), min(task) FROM farm.kept JOIN farm.results USING (task)"
            ).fetchall()
            return sorted(files or ()), task

    def forgettable(self, seen_before: float, limit: int) -> list[Forgettable]:
        """Results that are in the archive, and were first seen before this moment, oldest ids first."""
        with self.reading() as reader:
            rows = reader.execute(
                f"""
                SELECT k.task, any_value(k.recorded), any_value(k.outcome),
                    list(f.number ORDER BY f.number) FILTER (f.number IS NOT NULL)
                FROM (
                    SELECT task, recorded, outcome FROM farm.kept old JOIN farm.results USING (task)
                    WHERE file IS NOT NULL AND old.seen < ? ORDER BY task LIMIT {limit:d}
                ) k LEFT JOIN farm.failed_attempts f ON f.task = k.task
                GROUP BY k.task ORDER BY k.task
                """,
                [moment(seen_before)],
            ).fetchall()
        return [
            Forgettable(task=task, recorded=recorded, outcome=TaskOutcome(outcome), failed=tuple(failed or ()))
            for task, recorded, outcome, failed in rows
        ]

    # --- questions ---------------------------------------------------------------------------------------------------

    def outcomes(self, plan: str, without: Sequence[str] = ()) -> dict[str, int]:
        """How many tasks of a plan have ended how. `without`: tasks that are not counted."""
        with self.reading() as reader:
            rows = reader.execute(
                """
                SELECT outcome, count(*) FROM farm.results
                WHERE plan = ? AND task NOT IN (SELECT unnest(?::VARCHAR[])) GROUP BY outcome
                """,
                [stored(plan), list(without)],
            ).fetchall()
        return {outcome: int(number) for outcome, number in rows}

    def projects(self, plan: str) -> list[str]:
        """Of which projects the tasks of a plan were that have ended."""
        with self.reading() as reader:
            rows = reader.execute("SELECT DISTINCT project FROM farm.results WHERE plan = ?", [stored(plan)]).fetchall()
        return [str(project) for (project,) in rows]

    def durations(self) -> list[Sample]:
        """How long tasks took that have completed, and where: of the latest `SAMPLED`, those that are alike together."""
        with self.reading() as reader:
            rows = reader.execute(
                """
                SELECT project, name, command, list(seconds ORDER BY recorded DESC, task)[1:$most],
                    list(worker ORDER BY recorded DESC, task)[1:$most]
                FROM (
                    SELECT project, name, command, recorded, task, epoch(ended) - epoch(started) AS seconds,
                        CASE WHEN len(workers) = 1 THEN workers[1] ELSE '' END AS worker
                    FROM farm.results
                    WHERE outcome = $outcome AND started IS NOT NULL AND ended IS NOT NULL ORDER BY recorded DESC LIMIT $sampled
                ) GROUP BY project, name, command ORDER BY max(recorded) DESC LIMIT $groups
                """,
                {
                    "most": LATEST * CLASSES,
                    "outcome": TaskOutcome.COMPLETED.value,
                    "sampled": SAMPLED,
                    "groups": GROUPS,
                },
            ).fetchall()
        return [
            Sample(project, name, tuple(command), tuple(seconds), tuple(workers))
            for project, name, command, seconds, workers in rows
        ]

    def counts(self) -> dict[str, int]:
        """How many results there are, how many of them etcd still keeps, and how many of these no file has."""
        with self.reading() as reader:
            ((results, kept, unarchived),) = reader.execute("""
                SELECT (SELECT count(*) FROM farm.results), count(*), count(*) FILTER (file IS NULL)
                FROM farm.kept JOIN farm.results USING (task)
            """).fetchall()
        return {"results": results, "kept_in_etcd": kept, "not_in_archive": unarchived}

    def envelope(self, task: str) -> Envelope | None:
        """The result of a task, if it is here."""
        rows = self.page(Wanted(task=task), limit=1)
        return envelope_of(rows[0]) if rows else None

    def reusable(self, fingerprints: Sequence[str]) -> dict[str, tuple[str, Envelope]]:
        """The newest result with each of these fingerprints, with its task; nothing for those that have none."""
        with self.reading() as reader:
            rows = _dictionaries(
                reader,
                f"""
                SELECT {_COLUMNS} FROM farm.results
                WHERE fingerprint IN (SELECT unnest(?::VARCHAR[])) AND outcome = ?
                QUALIFY row_number() OVER (PARTITION BY fingerprint ORDER BY recorded DESC, task DESC) = 1
                """,
                [list(fingerprints), TaskOutcome.COMPLETED.value],
            )
        return {row["fingerprint"]: (row["task"], envelope_of(row)) for row in rows}

    def of_plan(self, plan: str) -> list[tuple[str, str, str, str]]:
        """Every result of a plan: task, outcome, the task that it is a retry of, and what was asked for.

        The last is "" for a task that completed.
        """
        with self.reading() as reader:
            return reader.execute(
                """
                SELECT task, outcome, coalesce(retry_of, ''),
                    CASE WHEN outcome = ? THEN '' ELSE coalesce(asked, '') END
                FROM farm.results WHERE plan = ? ORDER BY task
                """,
                [TaskOutcome.COMPLETED.value, stored(plan)],
            ).fetchall()

    def alike(
        self, project: str, name: str, command: Sequence[str], limit: int
    ) -> list[tuple[str, str, str, list[str], str]]:
        """The newest results of one test that ran and ended by itself: task, outcome, kind, workers, and what was asked for.

        Args:
            name: of its tasks; "": they have none, and `command` says which they are.
        """
        which, value = ("name = ?", stored(name)) if name else ("name = '' AND command = ?", [*map(stored, command)])
        with self.reading() as reader:
            return reader.execute(
                f"""
                SELECT task, outcome, kind, workers, coalesce(asked, '') FROM farm.results
                WHERE project = ? AND {which} AND outcome IN (?, ?) AND coalesce(reused_from, '') = ''
                ORDER BY task DESC LIMIT {limit:d}
                """,
                [stored(project), value, TaskOutcome.COMPLETED.value, TaskOutcome.FAILED.value],
            ).fetchall()

    def page(
        self, wanted: Wanted, *, limit: int, order: Order = NEWEST, behind: Place | None = None
    ) -> list[dict[str, Any]]:
        """Rows of `farm.results` behind a place in an order, each with `status`, `sort_key` and `failed_attempts`."""
        conditions, parameters = _conditions(wanted)
        key, direction = f"({_KEYS[order.field]})", "DESC" if order.descending else "ASC"
        if behind is not None:
            conditions.append(f"({key}, task) {'<' if order.descending else '>'} (?, ?)")
            parameters += [stored(behind.key) if isinstance(behind.key, str) else behind.key, stored(behind.name)]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        with self.reading() as reader:
            rows = _dictionaries(
                reader,
                f"SELECT {_COLUMNS}, {_STATUS} AS status, {key} AS sort_key FROM farm.results {where} "
                f"ORDER BY sort_key {direction}, task {direction} LIMIT {limit:d}",
                parameters,
            )
            failed = _dictionaries(
                reader,
                f"SELECT {_FAILURE_COLUMNS} FROM farm.failed_attempts WHERE task IN (SELECT unnest(?)) ORDER BY number",
                [[row["task"] for row in rows]],
            )
        for row in rows:
            row["failed_attempts"] = [attempt for attempt in failed if attempt["task"] == row["task"]]
        return rows


def _add_results(writer: Connection) -> None:
    """Those of `shown`, which etcd has, or had when it showed them."""
    writer.execute(f"INSERT OR IGNORE INTO farm.results ({_COLUMNS}) SELECT {_COLUMNS} FROM shown")
    writer.execute("INSERT OR IGNORE INTO farm.kept SELECT task, seen FROM shown")


def _add_failures(writer: Connection) -> None:
    writer.execute(
        f"INSERT OR IGNORE INTO farm.failed_attempts ({_FAILURE_COLUMNS}) SELECT {_FAILURE_COLUMNS} FROM failed"
    )


def _note_file(writer: Connection, file: str) -> None:
    """The tasks of `filed` are in this file."""
    writer.execute("UPDATE farm.results SET file = ? WHERE file IS NULL AND task IN (SELECT task FROM filed)", [file])
    writer.execute("INSERT OR IGNORE INTO farm.archive_files SELECT ?, count(*) FROM filed", [file])


_SEARCHED = """
    (SELECT starts_with(task, text) OR contains(lower(name), text) OR contains(lower(array_to_string(command, ' ')), text)
    FROM (SELECT ?::VARCHAR AS text))
"""


def _conditions(wanted: Wanted) -> tuple[list[str], list[Any]]:
    asked = [
        ("task = ?", wanted.task),
        ("list_contains(workers, ?)", wanted.worker),
        (f"{_STATUS} = ?", wanted.status and wanted.status.value),
        ("outcome = ?", wanted.outcome and wanted.outcome.value),
        ("project = ?", wanted.project),
        ("plan = ?", wanted.plan),
        ("name = ?", wanted.name),
    ]
    told: list[tuple[str, Any]] = [(condition, stored(value)) for condition, value in asked if value]
    if wanted.search:
        told.append((_SEARCHED, stored(wanted.search.lower())))
    for condition, wall in (
        ("ended >= ?", wanted.since),
        ("ended < ?", wanted.until),
        ("submitted >= ?", wanted.created_after),
        ("submitted < ?", wanted.created_before),
    ):
        if wall is not None:
            told.append((condition, _moment(wall)))
    return [condition for condition, _ in told], [value for _, value in told]


def _moment(wall: float) -> Any:
    try:
        return moment(wall)
    except (ValueError, OverflowError, OSError):
        raise SettingsError(f"{wall!r} is no time; expected seconds since the epoch") from None


def _dictionaries(reader: Connection, sql: str, parameters: Sequence[Any]) -> list[dict[str, Any]]:
    answer = reader.execute(sql, parameters)
    columns = [column[0] for column in answer.description or ()]
    return [dict(zip(columns, row, strict=True)) for row in answer.fetchall()]
