"""Questions in SQL, by people, to a coordinator's database: one SELECT, which changes nothing and does not take for ever."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from dtf_lightning.database.connection import Connection, DatabaseError
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.results.store import FarmResults

MAX_ROWS = 10_000
"""Of an answer; the rest is cut off, and the answer says so."""
TIMEOUT = 30.0
"""Seconds for one question."""
_EXAMPLE = "SELECT name, count(*) FROM farm.results GROUP BY name"
_KINDS = ("SELECT", "EXPLAIN")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a question gave."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    truncated: bool
    """There are more rows than these."""


def query(results: FarmResults, sql: str, *, limit: int = MAX_ROWS, timeout: float = TIMEOUT) -> Answer:
    """Answer a question. `timeout` in seconds.

    Raises `SettingsError` for what is not one SELECT, fails, or takes too long, and `ResultsBusy`.
    """
    with results.reading() as reader:
        _check(reader, sql)
        late = threading.Event()

        def interrupt() -> None:
            late.set()
            reader.interrupt()

        timer = threading.Timer(timeout, interrupt)
        timer.daemon = True
        timer.start()
        try:
            answer = reader.execute(sql)
            rows = answer.fetchmany(limit + 1)
        except DatabaseError as error:
            if late.is_set():
                raise SettingsError(
                    f"the query was ended after {timeout:g} s: ask for less, or ask the archive's Parquet files, which any "
                    "program may read"
                ) from None
            raise SettingsError(f"the query failed: {error}") from None
        finally:
            timer.cancel()
            timer.join()
        columns = tuple(column[0] for column in answer.description or ())
    return Answer(columns=columns, rows=rows[:limit], truncated=len(rows) > limit)


def _check(reader: Connection, sql: str) -> None:
    try:
        sql.encode()
        statements = reader.extract_statements(sql)
    except (DatabaseError, UnicodeEncodeError) as error:
        raise SettingsError(f"the query cannot be read: {error}") from None
    kinds = [statement.type.name for statement in statements]
    if len(kinds) != 1 or kinds[0] not in _KINDS:
        raise SettingsError(
            f"the query has {' and '.join(kinds) or 'no statement'}; expected one SELECT, such as {_EXAMPLE!r}"
        )
