"""Rows as Arrow tables, which is how DuckDB takes many at once, and those tables as files of the archive.

A file of the archive is one Parquet table of whole results, each with its attempts that failed, so that nothing else is
needed to make the database anew. Its version stands in its metadata under `dtf_farm_archive`. Rules for later releases:
a new column may be added, and is empty in what older files give; a file of a newer version is refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.results.rows import Row, SeenFailure, SeenResult, failure_row, one_of_each, result_row

_TEXT, _NUMBER, _TIME = pa.string(), pa.int64(), pa.timestamp("us")

RESULT = pa.schema(
    [
        ("task", _TEXT),
        ("project", _TEXT),
        ("plan", _TEXT),
        ("name", _TEXT),
        ("command", pa.list_(_TEXT)),
        ("outcome", _TEXT),
        ("kind", _TEXT),
        ("reason", _TEXT),
        ("exit_code", _NUMBER),
        ("attempt", _NUMBER),
        ("revision", _NUMBER),
        ("workers", pa.list_(_TEXT)),
        ("submitted", _TIME),
        ("started", _TIME),
        ("ended", _TIME),
        ("metrics", pa.map_(_TEXT, pa.float64())),
        ("counts", pa.map_(_TEXT, _NUMBER)),
        ("artifacts", pa.map_(_TEXT, _TEXT)),
        ("log_bytes", _NUMBER),
        ("tail", _TEXT),
        ("problems", pa.list_(_TEXT)),
        ("retry_of", _TEXT),
        ("asked", _TEXT),
        ("returned", _TEXT),
        ("fingerprint", _TEXT),
        ("reused_from", _TEXT),
        ("recorded", _NUMBER),
        ("seen", _TIME),
    ]
)
"""The columns of `farm.results`, by their names."""
_FAILURE_OF_ITS_TASK = [
    ("number", _NUMBER),
    ("revision", _NUMBER),
    ("workers", pa.list_(_TEXT)),
    ("reason", _TEXT),
    ("ended", _TIME),
]
FAILURE = pa.schema([("task", _TEXT), *_FAILURE_OF_ITS_TASK])
"""The columns of `farm.failed_attempts`."""
ARCHIVED = RESULT.append(pa.field("failed_attempts", pa.list_(pa.struct(_FAILURE_OF_ITS_TASK))))
"""The columns of a file of the archive."""

VERSION = 1
_VERSION_KEY = b"dtf_farm_archive"


class NotAnArchive(DtfError):
    """A file in the archive is none of a farm's, is damaged, or was written by a newer release."""


def result_table(results: Iterable[SeenResult]) -> Any:
    """Return results as a `pyarrow.Table`, one row a task."""
    return _table([result_row(result) for result in one_of_each(results)], RESULT)


def failure_table(failures: Iterable[SeenFailure]) -> Any:
    """Return failed attempts as a `pyarrow.Table`, one row for each."""
    rows = {(failure.task, failure.number): failure_row(failure) for failure in failures}
    return _table(list(rows.values()), FAILURE)


def task_table(tasks: Iterable[str]) -> Any:
    """Return a `pyarrow.Table` of one column."""
    return pa.table({"task": pa.array(tasks, _TEXT)})


def to_parquet(table: Any) -> bytes:
    """Return rows of the columns `ARCHIVED` as a file."""
    sink = pa.BufferOutputStream()
    stamped = table.select(ARCHIVED.names).cast(ARCHIVED.with_metadata({_VERSION_KEY: str(VERSION).encode()}))
    pq.write_table(stamped, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def from_parquet(data: bytes, name: str) -> Any:
    """Return the rows of a file of the archive, with the columns `ARCHIVED`.

    Raises `NotAnArchive` for one that is damaged, of something else, or of a newer release.
    """
    try:
        table = pq.read_table(pa.BufferReader(data))
        version = int((table.schema.metadata or {}).get(_VERSION_KEY, b"0"))
        if not 0 < version <= VERSION:
            raise NotAnArchive(
                f"{name} has version {version} of the archive's files, this release reads 1 to {VERSION}: "
                + ("update it" if version > VERSION else "it is none of a farm's, move it elsewhere")
            )
        columns = [
            table.column(field.name).cast(field.type)
            if field.name in table.schema.names
            else pa.nulls(table.num_rows, field.type)
            for field in ARCHIVED
        ]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise NotAnArchive(f"{name} cannot be read as a file of the archive: {error}") from error
    return pa.table(columns, schema=ARCHIVED)


def outcomes_in(table: Any) -> list[tuple[str, str]]:
    """Return the tasks of a file of the archive, each with how it ended."""
    return list(zip(table.column("task").to_pylist(), table.column("outcome").to_pylist(), strict=True))


def _table(rows: list[Row], schema: Any) -> Any:
    return pa.Table.from_pylist(rows, schema)
