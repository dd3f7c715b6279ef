"""Writes the answer of a query as text: for terminals, programs and Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from typing import Any

FORMATS = ("csv", "json", "markdown", "table")


def format_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> str:
    """Return all rows as text in one of `FORMATS`, without a newline at the end.

    JSON is a list of objects, with times in ISO 8601 and whatever JSON has no word for as text. A value that is not
    there is `null` in JSON and empty elsewhere.
    """
    match form:
        case "csv":
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows([_plain(cell) for cell in row] for row in rows)
            return text.getvalue().removesuffix("\n")
        case "json":
            objects = [dict(zip(columns, row, strict=True)) for row in rows]
            return json.dumps(objects, default=_plain, indent=2, ensure_ascii=False)
        case "markdown":
            cells = [[_plain(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
            lines = [f"| {' | '.join(row)} |" for row in cells]
            return "\n".join([lines[0], "|" + "---|" * len(columns), *lines[1:]])
        case _:
            cells = [[_plain(cell).replace("\n", " ") for cell in row] for row in (columns, *rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            return "\n".join(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
            )


def _plain(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case datetime() | date() | time():
            return value.isoformat()
        case dict() | list():
            return json.dumps(value, default=_plain, ensure_ascii=False)
        case _:
            return str(value)
