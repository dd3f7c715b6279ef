"""Takes the logs of a run's folder into the database.

Rules that this file guards:

* a file is read from where the last sync stopped, up to its last whole line, so that a sync may run at any time;
* rows of a file and how far it was read are written in one transaction: a sync that fails leaves nothing half done;
* a broken line is left out and recorded with its file and number; a line of a newer version ends the sync;
* rows of one file lie together in the order of its lines, which is that of time: DuckDB skips what a query on runs,
  times or steps does not ask for without an index, which bulk inserts would pay for.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtf_lightning.database.connection import Connection, single, transaction
from dtf_lightning.elastic.events import ELASTIC_EVENTS, StepsDone
from dtf_lightning.elastic.observe.ledger import read_ledger
from dtf_lightning.elastic.observe.rescale_audit import GenerationCost, rescale_costs
from dtf_lightning.elastic.reports.ledger_audit import audit_run
from dtf_lightning.elastic.reports.run_folder import find_run
from dtf_lightning.elastic.reports.step_samples import (
    COLUMNS,
    LAST_TIME,
    check_range,
    insert_lines,
    is_step_sample,
    to_timestamp,
)
from dtf_lightning.errors import SettingsError
from dtf_lightning.events.registry import Event, EventLogError, NewerEvents


@dataclass
class SyncReport:
    """The result of one sync."""

    run: str
    files: int = 0
    """The number of files that had something new."""
    new_lines: int = 0
    corrupt: list[str] = field(default_factory=list)
    """`file:line: problem` of each line that this sync has left out."""


def sync_run(connection: Connection, run_dir: Path) -> SyncReport:
    """Take in what is new in the run's folder. Raises `SettingsError` (no run's folder, newer events)."""
    run_dir = find_run(run_dir)
    files = sorted(run_dir.glob("events/*.jsonl"))
    with transaction(connection):
        report = SyncReport(_name_of(connection, run_dir))
        for path in files:
            _sync_file(connection, path, report)
        if report.corrupt and not _knows_events(connection, report.run):
            raise SettingsError(
                f"{run_dir} is no run's folder: no line in its events/*.jsonl is an event, the first is "
                f"{report.corrupt[0]}"
            )
        if _ledgers_changed(connection, run_dir, report) or report.files:
            _sync_ledgers(connection, run_dir, report)
    return report


def _knows_events(connection: Connection, run: str) -> bool:
    tables = "(SELECT run FROM events UNION ALL SELECT run FROM step_samples)"
    return bool(connection.execute(f"SELECT 1 FROM {tables} WHERE run = ? LIMIT 1", [run]).fetchall())


def _name_of(connection: Connection, run_dir: Path) -> str:
    """Return the run's name in the database: its folder's, with a number if another folder has that name."""
    known = dict(connection.execute("SELECT folder, run FROM known_runs").fetchall())
    folder = str(run_dir)
    if folder not in known:
        name, number = run_dir.name, 1
        while name in known.values():
            number += 1
            name = f"{run_dir.name}-{number}"
        connection.execute("INSERT INTO known_runs VALUES (?, ?)", [name, folder])
        known[folder] = name
    return str(known[folder])


def _sync_file(connection: Connection, path: Path, report: SyncReport) -> None:
    rows = connection.execute(
        "SELECT bytes, lines FROM files WHERE run = ? AND file = ?", [report.run, path.name]
    ).fetchall()
    offset, number = rows[0] if rows else (0, 0)
    if path.stat().st_size < offset:  # another file under the same name
        for table in ("events", "step_samples", "corrupt_lines"):
            connection.execute(f"DELETE FROM {table} WHERE run = ? AND file = ?", [report.run, path.name])
        offset = number = 0
    with path.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    if not newline:
        return
    lines = list(enumerate(whole.split(b"\n"), start=number + 1))
    steps = [numbered for numbered in lines if is_step_sample(numbered[1])]
    slow = {number for number, _ in lines} - {number for number, _ in steps}
    slow.update(insert_lines(connection, report.run, path.name, steps))
    _insert_others(connection, path, [numbered for numbered in lines if numbered[0] in slow], report)
    report.files += 1
    report.new_lines += len(lines)
    connection.execute(
        "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)",
        [report.run, path.name, offset + len(whole) + 1, number + len(lines)],
    )


def _insert_others(connection: Connection, path: Path, lines: list[tuple[int, bytes]], report: SyncReport) -> None:
    events, corrupt = [], []
    for number, line in lines:
        try:
            event = ELASTIC_EVENTS.parse(line)
            _check_ranges(event)
        except NewerEvents as error:
            raise SettingsError(f"{path}:{number}: {error}") from None
        except (EventLogError, UnicodeDecodeError) as error:
            corrupt.append((report.run, path.name, number, str(error)))
            report.corrupt.append(f"{path}:{number}: {error}")
            continue
        events.append((number, event))
    insert_events(connection, report.run, path.name, events)
    if corrupt:
        connection.executemany("INSERT INTO corrupt_lines VALUES (?, ?, ?, ?)", corrupt)


def add_events(connection: Connection, run: str, file: str, events: Iterable[Event]) -> int:
    """Insert events as if they were the next lines of a log; return how many they are.

    Raises `SettingsError` for values that cannot be.
    """
    with transaction(connection):
        connection.execute("INSERT OR IGNORE INTO known_runs VALUES (?, ?)", [run, f"added:{run}"])
        last = single(
            connection,
            "SELECT coalesce(max(line), 0) FROM (SELECT run, file, line FROM events UNION ALL "
            "SELECT run, file, line FROM step_samples) WHERE run = ? AND file = ?",
            [run, file],
        )
        rows = list(enumerate(events, start=last + 1))
        for number, event in rows:
            try:
                _check_ranges(event)
            except EventLogError as error:
                raise SettingsError(f"{file}:{number}: {error}") from None
        insert_events(connection, run, file, rows)
    return len(rows)


def insert_events(connection: Connection, run: str, file: str, events: Iterable[tuple[int, Event]]) -> None:
    """Insert events that were checked, with their line numbers, in the caller's transaction."""
    samples: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []
    for number, event in events:
        if isinstance(event, StepsDone):
            samples.append((run, file, number, *(getattr(event, name) for name in COLUMNS)))
        else:
            data = event.to_json()
            others.append((run, file, number, event.at, event.source, data.get("kind"), json.dumps(data)))
    _insert(connection, "step_samples", samples, {**_LINE, **{name: kind.sql for name, kind in COLUMNS.items()}})
    _insert(connection, "events", others, {**_LINE, **_EVENT})


_LINE = {"run": "VARCHAR", "file": "VARCHAR", "line": "BIGINT"}
_EVENT = {"at": "DOUBLE", "source": "VARCHAR", "kind": "VARCHAR", "data": "VARCHAR"}


def _insert(connection: Connection, table: str, rows: list[tuple[Any, ...]], types: dict[str, str]) -> None:
    """Insert rows whose values are of these types; the time is in seconds, as `at`."""
    if not rows:
        return
    values = {f"{name}_list": list(column) for name, column in zip(types, zip(*rows, strict=True), strict=True)}
    unnested = ", ".join(f'unnest(${name}_list::{kind}[]) AS "{name}"' for name, kind in types.items())
    chosen = ", ".join(to_timestamp('"at"') if name == "at" else f'"{name}"' for name in types)
    connection.execute(f"INSERT INTO {table} SELECT {chosen} FROM (SELECT {unnested})", values)


def _check_ranges(event: Event) -> None:
    """Refuse an event with a value that the database cannot hold. Raises `EventLogError`."""
    # No parser has looked at the fields of an unknown kind.
    if type(event.at) not in (int, float) or not 0 <= event.at <= LAST_TIME:
        raise EventLogError(f"{event.kind}: at is {event.at!r}, which it cannot be")
    if type(event.source) is not str:
        raise EventLogError(f"{event.kind}: source is {event.source!r}, which it cannot be")
    if isinstance(event, StepsDone):
        check_range(event)


def _ledgers_changed(connection: Connection, run_dir: Path, report: SyncReport) -> bool:
    """Tell whether a ledger has another size than at the last sync, and note the sizes."""
    sizes = {f"ledger/{path.name}": path.stat().st_size for path in run_dir.glob("ledger/*.jsonl")}
    known = "SELECT file, bytes FROM files WHERE run = ? AND file LIKE 'ledger/%'"
    if dict(connection.execute(known, [report.run]).fetchall()) == sizes:
        return False
    connection.executemany(
        "INSERT OR REPLACE INTO files VALUES (?, ?, ?, 0)", [[report.run, file, size] for file, size in sizes.items()]
    )
    return True


def _sync_ledgers(connection: Connection, run_dir: Path, report: SyncReport) -> None:
    """Audit the samples anew, as a later line can void an earlier one. A broken ledger counts as a corrupt line."""
    for table in ("audits", "costs"):
        connection.execute(f"DELETE FROM {table} WHERE run = ?", [report.run])
    connection.execute("DELETE FROM corrupt_lines WHERE run = ? AND file LIKE 'ledger/%'", [report.run])
    ledgers = sorted(run_dir.glob("ledger/*.jsonl"))
    size = single(
        connection,
        "SELECT max((data->'description'->>'dataset_size')::BIGINT) FROM events "
        "WHERE run = ? AND kind = 'training_described'",
        [report.run],
    )
    if not ledgers:
        return
    try:
        # First what looks at every line, and names the file and line of what is broken.
        costs = _rescale_costs(ledgers, size)
        found = audit_run(run_dir, dataset_size=size)
    except ValueError as error:  # no audit is better than an audit of half the samples
        report.corrupt.append(str(error))
        where = re.match(r"(?:.*/)?(ledger/[^/]*?):(?:(\d+):)? (.*)", str(error), re.DOTALL)
        file, line, problem = where.groups() if where else ("ledger/*", None, str(error))
        connection.execute("INSERT INTO corrupt_lines VALUES (?, ?, ?, ?)", [report.run, file, int(line or 0), problem])
        return
    last = max((epoch.epoch for epoch in found.epochs), default=0)
    for epoch in found.epochs:
        unseen = len(epoch.missing) + len(epoch.elsewhere)
        missing = unseen - epoch.left_out if unseen else 0
        complete = epoch.epoch < last or missing == 0
        repeated = sum(len(repetition.by) - 1 for repetition in epoch.repeated)
        connection.execute(
            "INSERT INTO audits VALUES (?, ?, ?, ?, ?, ?, ?)",
            [report.run, epoch.epoch, complete, epoch.consumed, missing, repeated, epoch.padding],
        )
    for cost in costs:
        connection.execute(
            "INSERT INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                report.run, cost.generation, cost.step, cost.steps, cost.steps_lost, cost.steps_redone,
                cost.samples_lost, cost.samples_repeated, cost.padding, found.instances.index(cost.instance) + 1,
            ],
        )  # fmt: skip


def _rescale_costs(ledgers: list[Path], size: int | None) -> list[GenerationCost]:
    """Return the costs; none for streams, whose number of samples is unknown. Raises `ValueError` for a broken line."""
    if size is not None:
        return rescale_costs(ledgers, size)
    for path in ledgers:
        deque(read_ledger(path), maxlen=0)
    return []
