"""Tables of a view as CSV, JSON or Parquet. Pure.

Rules that this file guards:
- A table is what the view's JSON has under its name: the same rows under the same filters.
- A cell of CSV is never a formula: spreadsheets run what begins with `=`, `+`, `-` or `@`, and names come from anybody. Such a text
  gets a `'` before it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dtf_lightning.database.formats import format_rows
from dtf_lightning.errors import SettingsError

ROWS = 10_000
"""Of a table that is saved, which on the screen has pages."""
FORMATS = {"csv": "text/csv; charset=utf-8", "json": "application/json", "parquet": "application/vnd.apache.parquet"}
"""Format -> media type."""
TABLES: Mapping[str, tuple[str, ...]] = {
    "now": ("running", "waiting", "failed", "workers", "findings"),
    "tasks": ("tasks",),
    "task": ("failed_attempts",),
    "plan": ("tasks",),
    "fleet": ("workers",),
    "cluster": ("nodes", "findings", "changes", "remedies"),
    "grid": ("rows",),
    "test": ("runs", "series", "by_device", "by_worker", "failures", "reruns"),
    "compare": ("pairs", "verdicts", "plans"),
    "trainings": ("trainings",),
    "training": ("members", "borrowings"),
}
"""Screen -> its tables, the first of which is meant where none is named."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table_of(screen: str, data: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the rows of a table, each with flat columns. Raises `SettingsError` for a table that a screen does not have."""
    there = TABLES.get(screen, ())
    name = name or (there[0] if there else "")
    if name not in there:
        raise SettingsError(
            f"table: this screen has no {name[:80]!r}; it has {', '.join(there)}"
            if there
            else "this screen has no table"
        )
    return [flat(row) for row in data.get(name) or ()]


def flat(row: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return a row whose objects are columns of their own (`cells.gpu.last`); lists are texts, in JSON."""
    told: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            told |= flat(value, f"{before}{name}.")
        else:
            told[before + str(name)] = json.dumps(value) if isinstance(value, list | tuple) else value
    return told


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the columns of all rows, in the order in which they come first."""
    return list(dict.fromkeys(name for row in rows for name in row))


def write_table(rows: Sequence[Mapping[str, Any]], form: str) -> bytes:
    """Return a table in one of `FORMATS`."""
    columns = columns_of(rows)
    if form == "json":
        return json.dumps([{name: row.get(name) for name in columns} for row in rows]).encode()
    if form == "parquet":
        return _parquet(rows, columns)
    told = [[_cell(row.get(name)) for name in columns] for row in rows]
    return (format_rows([_cell(name) for name in columns], told, "csv") + "\n").encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _parquet(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> bytes:
    """A column of one kind of values keeps it; where kinds differ, all of its values are text."""
    arrays = []
    for name in columns:
        values = [row.get(name) for row in rows]
        kinds = {type(value) for value in values if value is not None}
        if kinds == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1 or kinds - {bool, int, float, str}:
            values = [None if value is None else str(value) for value in values]
        if str in kinds or (len(kinds) > 1 and kinds != {int, float}):
            values = [
                value.encode("utf-8", "replace").decode() if isinstance(value, str) else value for value in values
            ]
        arrays.append(pa.array(values, pa.string() if not kinds else None))
    file = io.BytesIO()
    pq.write_table(pa.table(arrays, names=list(columns)) if columns else pa.table({}), file)
    return file.getvalue()
