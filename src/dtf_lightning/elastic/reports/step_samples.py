"""Inserts step samples, nearly all lines of a long run, in bulk, without making Python objects of them.

Rules that this file guards:

* the fast way takes a line only as `EventLog` writes it, with every value of the right type; all other lines are parsed
  one by one, where their problem is named;
* a field of `StepsDone` is a column of the same name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from dtf_lightning.database.connection import Connection
from dtf_lightning.elastic.events import ELASTIC_EVENTS, StepsDone
from dtf_lightning.events.registry import EventLogError

LAST_TIME = 2.0**37
"""The latest time that the database holds, in seconds since the epoch: the year 6325."""

BATCH = 250_000
"""The number of lines that are inserted at once: several row groups (122,880 rows), which DuckDB's threads share."""


@dataclass(frozen=True, kw_only=True)
class ColumnType:
    """A type of the database, and which JSON is a value of it."""

    sql: str
    written: str
    """The regular expression of a value in an event log; whole numbers of at most so many digits always fit."""
    below: float | None = None
    """The bound below which the absolute value of a number must be."""


TEXT = ColumnType(sql="VARCHAR", written=r'"[^"\\\x00-\x1f]*"')
INTEGER = ColumnType(sql="INTEGER", written=r"-?\d{1,9}", below=2**31)
BIGINT = ColumnType(sql="BIGINT", written=r"-?\d{1,18}", below=2**63)
DOUBLE = ColumnType(sql="DOUBLE", written=r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", below=1.8e308)

COLUMNS = {
    "at": DOUBLE, "source": TEXT, "generation": INTEGER, "world_size": INTEGER, "rank": INTEGER, "epoch": INTEGER,
    "step": BIGINT, "steps": BIGINT, "seconds": DOUBLE, "samples": BIGINT, "data_wait": DOUBLE, "loss": DOUBLE,
    "lr": DOUBLE, "rss": BIGINT, "device_memory": BIGINT,
}  # fmt: skip
"""The column types by the field of `StepsDone`, in their order. In the table, `at` is the column `time`."""
NULLABLE = {"loss", "lr", "device_memory"}

_BEGINNING = f'{{"v":{ELASTIC_EVENTS.version},"kind":"{StepsDone.kind}",'
_START = _BEGINNING.encode()


def line_pattern() -> str:
    """Return the regular expression of a step sample's line as `EventLog` writes it: these fields in this order."""
    values = {name: f"(?:{kind.written}{'|null' if name in NULLABLE else ''})" for name, kind in COLUMNS.items()}
    return _BEGINNING.replace("{", r"\{") + ",".join(f'"{name}":{value}' for name, value in values.items()) + r"\}"


def is_step_sample(line: bytes) -> bool:
    """Tell whether the fast way may know this line; cheap, because it is called for every line."""
    return line.startswith(_START) and line.isascii()


def to_timestamp(seconds: str) -> str:
    """Return SQL that makes a time from an expression for seconds since the epoch."""
    return f"make_timestamp(({seconds} * 1e6)::BIGINT)"


def check_range(sample: StepsDone) -> None:
    """Raise `EventLogError` for a number that the database cannot hold."""
    for name, kind in COLUMNS.items():
        value = getattr(sample, name)
        if kind.below is not None and value is not None and not -kind.below < value < kind.below:
            raise EventLogError(f"{sample.kind}: {name} is {value!r}, which it cannot be")


_SHAPE = json.dumps({name: kind.sql for name, kind in COLUMNS.items()})
# The lines are handed over and read in two statements: a list is unnested by one thread, a table is read by all.
_HAND_OVER = """
    CREATE OR REPLACE TEMP TABLE written AS
    SELECT unnest($numbers::BIGINT[]) AS line, unnest($texts::VARCHAR[]) AS text
"""
_READ = f"""
    CREATE OR REPLACE TEMP TABLE incoming AS
    SELECT line, CASE WHEN regexp_full_match(text, $pattern) THEN json_transform(text, '{_SHAPE}') END AS sample
    FROM written
"""
_FITS = f"coalesce(sample.at BETWEEN 0 AND {LAST_TIME}, false)"
_INSERT = f"""
    INSERT INTO step_samples
    SELECT $run, $file, line, {to_timestamp("sample.at")}, {", ".join(f"sample.{name}" for name in COLUMNS if name != "at")}
    FROM incoming WHERE {_FITS} ORDER BY line
"""


def insert_lines(connection: Connection, run: str, file: str, lines: list[tuple[int, bytes]]) -> Iterator[int]:
    """Insert what `is_step_sample` has let pass; yield the numbers of lines that are not as the log writes them."""
    for start in range(0, len(lines), BATCH):
        batch = lines[start : start + BATCH]
        numbers, texts = [number for number, _ in batch], [line.decode("ascii") for _, line in batch]
        connection.execute(_HAND_OVER, {"numbers": numbers, "texts": texts})
        connection.execute(_READ, {"pattern": line_pattern()})
        connection.execute(_INSERT, {"run": run, "file": file})
        yield from (line for (line,) in connection.execute(f"SELECT line FROM incoming WHERE NOT {_FITS}").fetchall())
        connection.execute("DROP TABLE written; DROP TABLE incoming")
