"""These functions let another process continue the CSV log of a run.

Private API touched here: `CSVLogger`'s `_experiment`, its experiment writer's `metrics_keys`.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.elastic.lightning.host.logs import opened
from dtf_lightning.elastic.lightning.host.names import rank_zero_only

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger

TAIL = 1 << 20
"""Largest number of bytes that are read from the file's end."""


def go_on(logger: CSVLogger, again: int) -> set[tuple[str, int]]:
    """Continue the former writer's metrics.csv, which a new experiment writer would delete.

    Rows of step `again` and later are removed, and so is a row that a killed writer has left incomplete.

    Returns: (column, step) of the values at the file's end.
    """
    path = Path(logger.log_dir, "metrics.csv")
    if not path.is_file():
        return set()
    there = _cut(path, _header(path), again)
    open_kept(logger)
    return there


def open_kept(logger: CSVLogger) -> None:
    """Open the logger's experiment without losing what another process wrote."""
    path = Path(logger.log_dir, "metrics.csv")
    if getattr(rank_zero_only, "rank", 0) != 0 or opened(logger) is not None or not path.is_file():
        return
    header = _header(path)
    aside = path.rename(path.with_suffix(".kept"))
    try:
        experiment = logger.experiment
    finally:
        aside.rename(path)
    experiment.metrics_keys = header


def _header(path: Path) -> list[str]:
    with path.open(newline="") as file:
        return next(csv.reader(file), [])


def _cut(path: Path, header: list[str], again: int) -> set[tuple[str, int]]:
    """Cut the file behind the last complete row of a step below `again`: rows are in the order of their steps.

    Returns: (column, step) of the values at the file's end.
    """
    there: set[tuple[str, int]] = set()
    if "step" not in header:
        return there
    with path.open("rb") as file:
        head = len(file.readline())
        size = os.path.getsize(path)
        start = file.seek(max(head, size - TAIL))
        lines = file.read().split(b"\n")
    end, offset = head if start == head else size, start
    for line in lines[:-1]:
        offset += len(line) + 1
        row = dict(zip(header, next(csv.reader([line.decode(errors="replace")]), []), strict=False))
        step = row.get("step", "")
        if not step.isdigit() or len(row) < len(header):
            continue  # the first line of a long file's tail may be half a row
        if int(step) < again:
            there |= {(name, int(step)) for name, value in row.items() if value}
            end = offset
    if end < size:
        os.truncate(path, end)
    return there
