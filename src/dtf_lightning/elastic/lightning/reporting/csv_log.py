"""`CsvFile` is the file of a run's CSV log, as one process writes it while others may continue the log.

Rules that this file guards:

* a process writes only to the file that it has made or opened. One that continues the log puts a copy in its place, so that
  what a former rank 0 writes late, or while the copy is made, is in nobody's log: its successor adds what is missing;
* the first row goes into a file that was not there before, or into none;
* a row is whole, or it is not in the copy.

Only logs on a file system of this machine are continued: a log at a URL is written as Lightning does it.

Private API touched here: `CSVLogger`'s `_experiment`, its experiment writer's `metrics_keys` and `metrics`.
"""

from __future__ import annotations

import csv
import os
import shutil
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.host.logs import opened
from dtf_lightning.elastic.lightning.host.names import rank_zero_only

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger

TAIL = 1 << 20
"""Largest number of bytes that are read from the file's end."""


class CsvFile:
    """The file to which this process writes the log of a logger, whose `save` this object's takes the place of."""

    def __init__(self, logger: CSVLogger) -> None:
        self._logger = logger
        self._write_anew = logger.save
        """Lightning's `save`, which finds the file by its name."""
        self._file: int | None = None
        """Descriptor of the file, open for appending; `None` before the first row."""
        self._close: Any = None
        if opened(logger) is not None and self._path.is_file():  # written to before this run
            self._open()
        logger.save = self.save  # type: ignore[method-assign]

    @property
    def _path(self) -> Path:
        return Path(self._logger.log_dir, "metrics.csv")

    @property
    def _remote(self) -> bool:
        return "://" in str(self._logger.log_dir)

    def save(self) -> None:
        """Write what was logged to the file, unless another process continues the log. Does nothing on other ranks than 0."""
        experiment = opened(self._logger)
        if experiment is None or getattr(rank_zero_only, "rank", 0) != 0:
            return
        if self._remote:
            self._write_anew()
        elif experiment.metrics:
            if not (self._mine() or self._make()):
                experiment.metrics = []
            elif set().union(*experiment.metrics) - set(experiment.metrics_keys):
                self._write_anew()  # another header: the same file, written once more
            else:
                assert self._file is not None
                with open(self._file, "a", newline="", closefd=False) as file:
                    csv.DictWriter(file, fieldnames=experiment.metrics_keys).writerows(experiment.metrics)
                experiment.metrics = []

    def go_on(self, again: int) -> set[tuple[str, int]]:
        """Continue the former writer's file, which a new experiment writer would delete.

        Rows of step `again` and later are left out, and so is a row that a killed writer has left incomplete.

        Returns: (column, step) of the values at the file's end.
        """
        path, there = self._path, set[tuple[str, int]]()
        if self._remote:
            return there
        path.parent.mkdir(parents=True, exist_ok=True)
        if not self._make():
            copy = path.with_suffix(".copy")
            shutil.copy(path, copy)
            there = _cut(copy, _header(copy), again)
            copy.replace(path)
            self._open()
        self.open_kept()
        return there

    def open_kept(self) -> None:
        """Open the logger's experiment without losing what another process wrote."""
        path = self._path
        if getattr(rank_zero_only, "rank", 0) != 0 or opened(self._logger) is not None or not path.is_file():
            return
        header = _header(path)
        aside = path.rename(path.with_suffix(".kept"))
        try:
            experiment = self._logger.experiment
        finally:
            aside.rename(path)
        experiment.metrics_keys = header
        self._open()

    def _mine(self) -> bool:
        """Tell whether the file of this name is the one that this process writes to."""
        if self._file is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            return False

    def _make(self) -> bool:
        """Make the file, empty; return false if there is one already, which is another process's."""
        try:
            self._open(os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        return True

    def _open(self, flags: int = 0) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | flags, 0o666)
        if self._close is not None:
            self._close()
        self._file, self._close = file, weakref.finalize(self, os.close, file)


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
