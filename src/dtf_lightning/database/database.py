"""A database of a product's schema as a Python object: ask, export."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import duckdb

from dtf_lightning.database.connection import LOCK_PATIENCE, connect
from dtf_lightning.database.formats import format_rows
from dtf_lightning.database.schema import Schema
from dtf_lightning.errors import SettingsError

_EXAMPLE = '"SELECT * FROM duckdb_views() WHERE NOT internal"'


class Database:
    """A DuckDB file, or one in memory, with the tables of a schema.

    DuckDB lets one process write to a file at a time, with no reader beside it. Who finds the file in use waits up to
    `patience` seconds.

    Args:
        path: is created; `:memory:` for a database that nobody needs later.
        read_only: beside other readers; the file must exist and be up to date.

    Raises:
        SettingsError: a file of another program or of a newer version, or one that stays in use.
    """

    def __init__(
        self,
        schema: Schema,
        path: str | Path = ":memory:",
        *,
        read_only: bool = False,
        patience: float = LOCK_PATIENCE,
    ) -> None:
        self._schema = schema
        self.path = str(path)
        self.connection = connect(self.path, read_only=read_only, patience=patience, if_in_use=f"{schema.if_in_use}. ")
        try:
            if read_only:
                schema.check(self.connection, self.path)
            else:
                schema.migrate(self.connection, self.path)
        except BaseException:
            self.connection.close()
            raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> duckdb.DuckDBPyRelation:
        """Return a relation: `.fetchall()`, `.df()`, `.filter()`...

        Raises `SettingsError`: wrong SQL, in DuckDB's words, or a statement that has no rows for an answer.
        """
        try:
            relation: duckdb.DuckDBPyRelation | None = self.connection.sql(sql, params=list(parameters) or None)
        except duckdb.Error as error:
            raise SettingsError(f"the query failed: {error}") from None
        if relation is None:
            raise SettingsError(
                f"the query has no answer: {sql!r} gives no rows. Expected a SELECT, such as {_EXAMPLE}"
            )
        return relation

    def text(self, sql: str, form: str | None = None) -> str:
        """Return the answer as text in one of `FORMATS`; by default as DuckDB's box, which shows the first rows of many.

        Raises like `query`.
        """
        relation = self.query(sql)
        with self.in_words("the query failed"):
            return str(relation) if form is None else format_rows(relation.columns, relation.fetchall(), form)

    def arrow(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The answer as a `pyarrow.Table`. Raises like `query`, and `SettingsError` without pyarrow."""
        if importlib.util.find_spec("pyarrow") is None:
            raise SettingsError("Arrow tables need pyarrow: pip install 'dtf-lightning[arrow]'")
        relation = self.query(sql, parameters)
        with self.in_words("the query failed"):
            return relation.to_arrow_table()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """The answer as one dictionary a row. Raises like `query`."""
        relation = self.query(sql, parameters)
        with self.in_words("the query failed"):
            return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]

    def export_parquet(self, folder: str | Path) -> list[Path]:
        """One file per view and table. Raises `SettingsError` when they cannot be written."""
        folder = Path(folder)
        names = self._schema.exported
        paths = [folder / f"{name}.parquet" for name in names]
        with self.in_words(f"the export to {folder} failed"):
            folder.mkdir(parents=True, exist_ok=True)
            for name, path in zip(names, paths, strict=True):
                self.connection.sql(f"SELECT * FROM {name}").write_parquet(str(path))
        return paths

    @contextmanager
    def in_words(self, what: str) -> Iterator[None]:
        """Inside, an error of DuckDB or of the disk is a `SettingsError` that says what was attempted."""
        try:
            yield
        except (duckdb.Error, OSError) as error:
            raise SettingsError(f"{what}: {error}") from None

    def close(self) -> None:
        """Idempotent."""
        self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
