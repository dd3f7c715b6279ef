"""Connections to DuckDB: patient ones, and transactions that are whole or not at all.

Read every result to its end (`fetchall`): one that is not keeps the connection busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import duckdb

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError

Connection = duckdb.DuckDBPyConnection
DatabaseError = duckdb.Error
PassingError = (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.TransactionException)
"""What may serve again later: a full disk, on which commits fail, too, and memory that a question holds."""

LOCK_PATIENCE = 10.0
"""Seconds to wait for another process that has the file open: a sync takes seconds, a query less."""


def connect(
    path: str = ":memory:", *, read_only: bool = False, patience: float = LOCK_PATIENCE, if_in_use: str = ""
) -> Connection:
    """Open a database, and wait up to `patience` seconds while another process has it.

    Args:
        if_in_use: what the user can do about a file that stays in use.

    Raises:
        SettingsError: a file that is no database or cannot be read, or one that stays in use.
    """
    locked = ""

    def opened() -> Connection | None:
        nonlocal locked
        try:
            return duckdb.connect(path, read_only=read_only)
        except duckdb.Error as error:
            locked = str(error).splitlines()[0]
            if "lock" not in str(error):
                raise SettingsError(f"the database {path} cannot be opened: {error}") from None
        return None

    try:
        connection = poll_until(opened, patience, path, interval=0.05)
    except TimeoutError:
        raise SettingsError(
            f"the database {path} is in use, also after {patience:g} s: while one process writes no other may "
            f"have it open. {if_in_use}{locked}"
        ) from None
    assert connection is not None  # `poll_until` returns no false value
    return connection


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """Inside, statements belong to one transaction: committed at the end, rolled back by any exception."""
    connection.begin()
    try:
        yield
        connection.commit()
    except BaseException:
        # A commit that failed (the disk is full) has ended the transaction by itself; its error is the one to tell.
        with suppress(duckdb.TransactionException):
            connection.rollback()
        raise


def single(connection: Connection, query: str, parameters: object = None) -> Any:
    """The value of a query whose answer is one row of one column."""
    ((value,),) = connection.execute(query, parameters).fetchall()
    return value
