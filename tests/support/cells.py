"""Cells of a table of tests: what the default suite samples, and the rest, which `make test-matrix` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def rest(*values: Any, **how: Any) -> Any:
    """`pytest.param`, left out by default."""
    return pytest.param(*values, marks=pytest.mark.matrix, **how)


def each_row_once(rows: Iterable[Any], columns: Iterable[Any], name: Callable[[Any, Any], str]) -> list[Any]:
    """All pairs of a row and a column: by default each row with one column, the columns in turn."""
    columns = list(columns)
    return [
        (pytest.param if number % len(columns) == place else rest)(row, column, id=name(row, column))
        for number, row in enumerate(rows)
        for place, column in enumerate(columns)
    ]
