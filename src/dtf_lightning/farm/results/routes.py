"""The routes of results: `Result` has the field names of the requirements.

`result_id` is the task's id, since a task has one result. `status` is `success` for a task that completed, `partial` for
one that was ended from outside (cancelled, or over its time) and has left counts, metrics or files, `failure` for all
others; how exactly it ended stands in `metadata`. Numbers that JSON has no word for (NaN, infinity) are null.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.returned import read_told
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import HARDWARE, NEWEST, SORTED_BY, ResultsBusy, Status, Wanted
from dtf_lightning.farm.rules.paging import next_cursor, read_cursor, read_order

MAX_PAGE = 1000
RETRY_AFTER = "1"
MAX_SQL = 100_000


class Question(BaseModel):
    """A question in SQL."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(max_length=MAX_SQL)


def add_results(app: FastAPI, history: History) -> None:
    """Add the routes to a coordinator's application."""

    @app.get("/api/results", operation_id="result.list")
    async def results(
        task_id: str = "",
        worker_id: str = "",
        status: Status | None = None,
        outcome: TaskOutcome | None = None,
        project: str = "",
        plan: str = "",
        name: str = "",
        since: str = "",
        until: str = "",
        sort: str = "",
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
        cursor: str = "",
    ) -> Response:
        """Newest first (`sort=-created`). `since`, `until`: ISO 8601, of the end. `cursor`: the last answer's `next`."""
        order = read_order(sort, SORTED_BY, str(NEWEST))
        behind = read_cursor(cursor, order, SORTED_BY)
        wanted = Wanted(
            task=task_id,
            worker=worker_id,
            status=status,
            outcome=outcome,
            project=project,
            plan=plan,
            name=name,
            since=read_time("since", since),
            until=read_time("until", until),
        )
        found = await asyncio.to_thread(history.page, wanted, limit=limit + 1, order=order, behind=behind)
        rows = [(row["sort_key"], row["task"], row) for row in found]
        shown = [result(row) for row in found[:limit]]
        return JSONResponse({"results": shown, "next": next_cursor(rows, order, limit)})

    @app.post("/api/results/query", operation_id="result.query")
    async def ask(question: Question) -> Response:
        """One SELECT over the schema `farm`; the first rows of a long answer."""
        answer = await asyncio.to_thread(history.query, question.sql)
        rows = [plain(row) for row in answer.rows]
        return JSONResponse({"columns": answer.columns, "rows": rows, "truncated": answer.truncated})

    @app.get("/api/results/{result_id}", operation_id="result.get")
    async def one(result_id: str) -> Response:
        rows = await asyncio.to_thread(history.page, Wanted(task=result_id), limit=1) if result_id else []
        if not rows:
            return JSONResponse({"error": f"this farm knows no result {result_id!r}"}, 404)
        return JSONResponse(result(rows[0]))

    async def busy(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 503, {"Retry-After": RETRY_AFTER})

    app.add_exception_handler(ResultsBusy, busy)


def result(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of `farm.results` as the API shows it."""
    started, ended, metrics = row["started"], row["ended"], row["metrics"]
    told: dict[str, Any] = plain({
        "result_id": row["task"],
        "task_id": row["task"],
        "worker_id": row["workers"][0] if row["workers"] else None,
        "test_id": row["name"] or None,
        "timestamp": ended or row["seen"],
        "metrics": {name: value for name, value in metrics.items() if name not in HARDWARE},
        "status": row["status"],
        "execution_time": (ended - started).total_seconds() if started and ended else None,
        "hardware_metrics": {name: value for name, value in metrics.items() if name in HARDWARE},
        "environment": {},
        "raw_data": {
            **{name: row[name] for name in ("artifacts", "log_bytes", "tail")},
            "returned": read_told(row["returned"] or "") or None,
        },
        "metadata": {
            **{name: row[name] for name in _METADATA},
            "failed_attempts": [
                {name: value for name, value in attempt.items() if name != "task"} for attempt in row["failed_attempts"]
            ],
        },
    })  # fmt: skip
    return told


_METADATA = (
    "project", "plan", "name", "command", "outcome", "kind", "reason", "exit_code", "attempt", "revision", "workers",
    "submitted", "started", "ended", "counts", "problems", "reused_from",
)  # fmt: skip


def plain(value: Any) -> Any:
    """Return what DuckDB gave as JSON has it: times as ISO 8601 in UTC, everything else that it has no word for as text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case datetime():
            utc = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            return utc.isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case Mapping():
            return {str(plain(name)): plain(part) for name, part in value.items()}
        case Sequence() if not isinstance(value, bytes):
            return [plain(part) for part in value]
        case _:
            return str(value)


def read_time(name: str, text: str) -> float | None:
    """Return seconds since the epoch of a time in ISO 8601; `None` for an empty text. `name`: for errors."""
    if not text:
        return None
    try:
        told = datetime.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{name}: {text!r} is no time; expected ISO 8601, such as 2027-01-31T12:00:00Z") from None
    try:
        return (told if told.tzinfo is not None else told.replace(tzinfo=UTC)).timestamp()
    except OverflowError:
        raise SettingsError(f"{name}: {text!r} is beyond what a calendar has") from None
