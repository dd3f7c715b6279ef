"""The database of runs as a Python object: sync, ask, export."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.reports.ingest import SyncReport, add_events, sync_run
from dtf_lightning.elastic.reports.schema import VIEWS, check_version, migrate
from dtf_lightning.errors import SettingsError
from dtf_lightning.events.log import Event

EXPORTED = (*VIEWS, "audits", "costs", "corrupt_lines")

LOCK_PATIENCE = 10.0
"""Seconds to wait for another process that has the file open: a sync takes seconds, a query less."""


class ResultsStore:
    """Runs in a DuckDB file, or in memory.

    DuckDB lets one process write to a file at a time, with no reader beside it. Training never does: it writes event
    logs, and whoever wants a database makes one from them. Who finds the file in use waits up to `patience` seconds.

    Args:
        path: is created; `:memory:` for a database that nobody needs later.
        read_only: beside other readers; the file must exist and be up to date.

    Raises:
        SettingsError: a file of another program or of a newer version, or one that stays in use.
    """

    def __init__(
        self, path: str | Path = ":memory:", *, read_only: bool = False, patience: float = LOCK_PATIENCE
    ) -> None:
        self.path = str(path)
        self.connection = _connect(self.path, read_only, patience)
        try:
            if read_only:
                check_version(self.connection, self.path)
            else:
                migrate(self.connection, self.path)
        except BaseException:
            self.connection.close()
            raise

    def sync(self, run_dir: str | Path) -> SyncReport:
        """Take in what is new in a run's folder; twice changes nothing, a failure changes nothing.

        Raises `SettingsError`: no run's folder, newer events, a file that cannot be read, a disk that is full.
        """
        with self._in_words(f"the sync of {run_dir} into {self.path} failed and changed nothing"):
            return sync_run(self.connection, Path(run_dir))

    def add(self, run: str, events: Iterable[Event], *, file: str = "added") -> int:
        """Typed rows in: as if they were the next lines of the run's log `file`, all of them or none; how many.

        A log belongs to one start of a worker, or to an agent: give each its own `file`. Raises `SettingsError`.
        """
        with self._in_words(f"the events were not added to {self.path}"):
            return add_events(self.connection, run, file, events)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyRelation:
        """A relation: `.fetchall()`, `.df()`, `.filter()`... Raises `SettingsError` with DuckDB's words for wrong SQL."""
        try:
            return self.connection.sql(sql, params=list(parameters) or None)
        except duckdb.Error as error:
            raise SettingsError(f"the query failed: {error}") from None

    def text(self, sql: str) -> str:
        """The answer as a table for a terminal, its first rows if there are many. Raises like `query`."""
        relation = self.query(sql)
        with self._in_words("the query failed"):
            return str(relation)

    def arrow(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The answer as a `pyarrow.Table`. Raises like `query`, and `SettingsError` without pyarrow."""
        if importlib.util.find_spec("pyarrow") is None:
            raise SettingsError("Arrow tables need pyarrow: pip install 'dtf-lightning[arrow]'")
        relation = self.query(sql, parameters)
        with self._in_words("the query failed"):
            return relation.to_arrow_table()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The answer as one dictionary a row. Raises like `query`."""
        relation = self.query(sql, parameters)
        with self._in_words("the query failed"):
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]

    def export_parquet(self, folder: str | Path) -> list[Path]:
        """One file per view and table. Raises `SettingsError` when they cannot be written."""
        folder = Path(folder)
        paths = [folder / f"{name}.parquet" for name in EXPORTED]
        with self._in_words(f"the export to {folder} failed"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, path in zip(EXPORTED, paths, strict=True):
                self.connection.sql(f"SELECT * FROM {name}").write_parquet(str(path))
        return paths

    @contextmanager
    def _in_words(self, what: str) -> Iterator[None]:
        try:
            yield
        except (duckdb.Error, OSError) as error:
            raise SettingsError(f"{what}: {error}") from None

    def close(self) -> None:
        """Idempotent."""
        self.connection.close()

    def __enter__(self) -> ResultsStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _connect(path: str, read_only: bool, patience: float) -> duckdb.DuckDBPyConnection:
    locked = ""

    def connection() -> duckdb.DuckDBPyConnection | None:
        nonlocal locked
        try:
            return duckdb.connect(path, read_only=read_only)
        except duckdb.Error as error:
            locked = str(error).splitlines()[0]
            if "lock" not in str(error):
                raise SettingsError(f"the database {path} cannot be opened: {error}") from None
        return None

    try:
        return poll_until(connection, patience, path, interval=0.05)  # type: ignore[return-value]
    except TimeoutError:
        raise SettingsError(
            f"the database {path} is in use, also after {patience:g} s: while one process writes no other may "
            f"have it open. Close it there, or use another file with --db (it can always be synced anew). {locked}"
        ) from None
