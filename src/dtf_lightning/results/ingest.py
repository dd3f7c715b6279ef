"""From the logs of a run's folder into the database.

Rules that this file guards:

* a file is read from where the last sync stopped, up to its last whole line, so that a sync may run at any time;
* rows of a file and how far it was read are written in one transaction: a sync that fails leaves nothing half done;
* a broken line is passed over and recorded with its file and number; a line of a newer version ends the sync.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.errors import SettingsError
from dtf_lightning.events import SCHEMA_VERSION, EventLogError, NewerEvents, UnknownEvent, parse_event
from dtf_lightning.results.ledger_audit import audit_run
from dtf_lightning.training.rescale_audit import rescale_costs

if TYPE_CHECKING:
    import duckdb

_STEPS = f'{{"v":{SCHEMA_VERSION},"kind":"steps",'.encode()
"""How nearly all lines of a long run begin: those go into the database without becoming Python objects."""

_COLUMNS = {
    "at": "DOUBLE", "source": "VARCHAR", "generation": "INTEGER", "world_size": "INTEGER", "rank": "INTEGER",
    "epoch": "INTEGER", "step": "BIGINT", "steps": "BIGINT", "seconds": "DOUBLE", "samples": "BIGINT",
    "data_wait": "DOUBLE", "loss": "DOUBLE", "lr": "DOUBLE", "rss": "BIGINT", "device_memory": "BIGINT",
}  # fmt: skip
_OPTIONAL = {"loss", "lr", "rss", "device_memory"}
_TIME = "make_timestamp((at * 1e6)::BIGINT)"


@dataclass
class SyncReport:
    """What one sync did."""

    run: str
    files: int = 0
    """That had something new."""
    new_lines: int = 0
    corrupt: list[str] = field(default_factory=list)
    """`file:line: problem` of each line passed over in this sync."""


@dataclass
class _Lines:
    """The new lines of one file."""

    steps: list[tuple[int, bytes]] = field(default_factory=list)
    others: list[tuple[int, bytes]] = field(default_factory=list)


def sync_run(connection: duckdb.DuckDBPyConnection, run_dir: Path) -> SyncReport:
    """Take in what is new in the run's folder. Raises `SettingsError` (no run's folder, newer events)."""
    run_dir = run_dir.absolute()
    files = sorted(run_dir.glob("events/*.jsonl"))
    if not files:
        raise SettingsError(
            f"{run_dir} is no run's folder: it has no events/*.jsonl. A run's folder is "
            "<default_root_dir>/dtf/<run id>, or what ElasticCallback(run_dir=...) was given"
        )
    connection.begin()
    try:
        report = SyncReport(_name_of(connection, run_dir))
        for path in files:
            _sync_file(connection, path, report)
        if report.files:
            _sync_ledgers(connection, run_dir, report)
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    return report


def _name_of(connection: duckdb.DuckDBPyConnection, run_dir: Path) -> str:
    """The run's name in the database: its folder's, with a number where another folder has that name."""
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


def _sync_file(connection: duckdb.DuckDBPyConnection, path: Path, report: SyncReport) -> None:
    row = connection.execute(
        "SELECT bytes, lines FROM files WHERE run = ? AND file = ?", [report.run, path.name]
    ).fetchone()
    offset, number = row or (0, 0)
    if path.stat().st_size < offset:  # another file under the same name
        for table in ("events", "step_samples", "corrupt_lines"):
            connection.execute(f"DELETE FROM {table} WHERE run = ? AND file = ?", [report.run, path.name])
        offset = number = 0
    with path.open("rb") as file:
        file.seek(offset)
        whole, newline, _ = file.read().rpartition(b"\n")
    if not newline:
        return
    found = _Lines()
    for line in whole.split(b"\n"):
        number += 1
        # \1 separates number and line on their way into the database.
        fast = line.startswith(_STEPS) and line.isascii() and b"\x01" not in line
        (found.steps if fast else found.others).append((number, line))
    report.files += 1
    report.new_lines += len(found.steps) + len(found.others)
    if found.steps:
        _insert_steps(connection, path, found, report)
    _insert_others(connection, path, found.others, report)
    connection.execute(
        "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", [report.run, path.name, offset + len(whole) + 1, number]
    )


def _insert_steps(connection: duckdb.DuckDBPyConnection, path: Path, found: _Lines, report: SyncReport) -> None:
    """In bulk; lines that do not fit are handed over to `found.others`, where their problem is named."""
    shape = json.dumps(_COLUMNS)
    required = " AND ".join(f"d.{name} IS NOT NULL" for name in _COLUMNS if name not in _OPTIONAL)
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(b"\n".join(b"%d\x01%b" % pair for pair in found.steps) + b"\n")
        file.flush()
        connection.execute(f"""
            CREATE OR REPLACE TEMP TABLE incoming AS
            SELECT n, CASE WHEN json_valid(line) THEN json_transform(line, '{shape}') END AS d
            FROM read_csv('{file.name}', columns={{'n': 'BIGINT', 'line': 'VARCHAR'}}, delim='\x01', quote='',
                escape='', header=false, auto_detect=false)
        """)
    columns = ", ".join(f"d.{name}" for name in _COLUMNS if name != "at")
    connection.execute(
        f"INSERT INTO step_samples SELECT ?, ?, n, {_TIME.replace('at ', 'd.at ')}, {columns} FROM incoming "
        f"WHERE {required} ORDER BY n",
        [report.run, path.name],
    )
    wrong = {
        n for (n,) in connection.execute(f"SELECT n FROM incoming WHERE NOT coalesce({required}, false)").fetchall()
    }
    connection.execute("DROP TABLE incoming")
    if wrong:
        found.others.extend(pair for pair in found.steps if pair[0] in wrong)


def _insert_others(
    connection: duckdb.DuckDBPyConnection, path: Path, lines: list[tuple[int, bytes]], report: SyncReport
) -> None:
    rows, corrupt = [], []
    for number, line in lines:
        try:
            event = parse_event(line)
        except NewerEvents as error:
            raise SettingsError(f"{path}:{number}: {error}") from None
        except (EventLogError, UnicodeDecodeError) as error:
            corrupt.append((report.run, path.name, number, str(error)))
            report.corrupt.append(f"{path}:{number}: {error}")
            continue
        data = event.data if isinstance(event, UnknownEvent) else event.to_json()
        rows.append((report.run, path.name, number, event.at, event.source, data.get("kind"), json.dumps(data)))
    if rows:
        columns = ["run", "file", "line", "at", "source", "kind", "data"]
        lists = {name: list(values) for name, values in zip(columns, zip(*rows, strict=True), strict=True)}
        unnested = ", ".join(f"unnest(${name}) AS {name if name != 'at' else 'moment'}" for name in columns)
        connection.execute(
            f"INSERT INTO events SELECT run, file, line, make_timestamp((moment * 1e6)::BIGINT), source, kind, data "
            f"FROM (SELECT {unnested})",
            lists,
        )
    if corrupt:
        connection.executemany("INSERT INTO corrupt_lines VALUES (?, ?, ?, ?)", corrupt)


def _sync_ledgers(connection: duckdb.DuckDBPyConnection, run_dir: Path, report: SyncReport) -> None:
    """The audit of samples, anew: a later line can void an earlier one. A broken ledger is a corrupt line."""
    for table in ("audits", "costs"):
        connection.execute(f"DELETE FROM {table} WHERE run = ?", [report.run])
    ledgers = sorted(run_dir.glob("ledger/*.jsonl"))
    size = connection.execute(
        "SELECT max((data->'description'->>'dataset_size')::BIGINT) FROM events "
        "WHERE run = ? AND kind = 'training_described'",
        [report.run],
    ).fetchone()
    if not ledgers or not size:
        return
    try:
        found = audit_run(run_dir, dataset_size=size[0])
        # Of streams nobody knows how many samples they should have had.
        costs = rescale_costs(ledgers, size[0]) if size[0] is not None else []
    except ValueError as error:
        report.corrupt.append(str(error))
        return
    last = max((epoch.epoch for epoch in found.epochs), default=0)
    for epoch in found.epochs:
        missing = len(epoch.missing)
        complete = epoch.epoch < last or missing == 0
        repeated = sum(len(repetition.by) - 1 for repetition in epoch.repeated)
        connection.execute(
            "INSERT INTO audits VALUES (?, ?, ?, ?, ?, ?, ?)",
            [report.run, epoch.epoch, complete, epoch.consumed, missing, repeated, epoch.padding],
        )
    for cost in costs:
        connection.execute(
            "INSERT INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                report.run, cost.generation, cost.step, cost.steps, cost.steps_lost, cost.steps_redone,
                cost.samples_lost, cost.samples_repeated, cost.padding,
            ],
        )  # fmt: skip
