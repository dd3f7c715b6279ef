"""The database of runs as a Python object: sync, ask, export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb

from dtf_lightning.errors import SettingsError
from dtf_lightning.results.ingest import SyncReport, sync_run
from dtf_lightning.results.schema import VIEWS, migrate

EXPORTED = (*VIEWS, "audits", "costs", "corrupt_lines")


class ResultsStore:
    """Runs in a DuckDB file, or in memory.

    DuckDB lets one process write to a file at a time. Training never does: it writes event logs, and whoever wants a
    database makes one from them.

    Args:
        path: is created; `:memory:` for a database that nobody needs later.
        read_only: beside other readers; the file must exist and be up to date.

    Raises:
        SettingsError: a file of another program or of a newer version, or one that another process writes to.
    """

    def __init__(self, path: str | Path = ":memory:", *, read_only: bool = False) -> None:
        try:
            self.connection = duckdb.connect(str(path), read_only=read_only)
        except duckdb.Error as error:
            raise SettingsError(f"the database {path} cannot be opened: {error}") from None
        try:
            if not read_only:
                migrate(self.connection, str(path))
        except BaseException:
            self.connection.close()
            raise

    def sync(self, run_dir: str | Path) -> SyncReport:
        """Take in what is new in a run's folder; twice changes nothing. Raises `SettingsError`."""
        return sync_run(self.connection, Path(run_dir))

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyRelation:
        """A relation: `.fetchall()`, `.arrow()`, `.df()`. Raises `SettingsError` with DuckDB's words for wrong SQL."""
        try:
            return self.connection.sql(sql, params=list(parameters) or None)
        except duckdb.Error as error:
            raise SettingsError(f"the query failed: {error}") from None

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The answer as one dictionary a row. Raises like `query`."""
        relation = self.query(sql, parameters)
        return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]

    def export_parquet(self, folder: str | Path) -> list[Path]:
        """One file per view. Raises `OSError` when the folder cannot be made."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.parquet" for name in EXPORTED]
        for name, path in zip(EXPORTED, paths, strict=True):
            self.connection.sql(f"SELECT * FROM {name}").write_parquet(str(path))
        return paths

    def close(self) -> None:
        """Idempotent."""
        self.connection.close()

    def __enter__(self) -> ResultsStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
