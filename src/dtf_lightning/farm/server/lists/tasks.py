"""Pages of tasks: those that are not done, from the record, and those that are, from the database of results.

Rules that this file guards:
- No task is missing in a page because it ended meanwhile: what is not done is looked at first, then the latest results,
  then the database. A task that is found twice is shown as it was found first.
- Only what is on the page is made into what the API shows, and the loop is let go after every `SLICE` tasks that are
  looked at.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.rows import MAX_INTEGER, envelope_of, microseconds
from dtf_lightning.farm.results.store import Wanted
from dtf_lightning.farm.rules.paging import LAST, Key, Order, Place, Row, first_rows, is_behind, next_cursor
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.envelopes import shortened
from dtf_lightning.farm.server.pool import LIVE_STATUSES, LiveTask, Pool

SLICE = 1_000
"""Tasks that are looked at before others get their turn: about 2 ms."""
SORTED_BY: dict[str, type] = {
    "created": str,
    "started": int,
    "ended": int,
    "name": str,
    "project": str,
    "status": str,
    "worker": str,
}
"""`created` is by the ids, which carry their time."""
DONE_STATUSES = tuple(outcome.value for outcome in TaskOutcome)


@dataclass(frozen=True, kw_only=True)
class TaskFilter:
    """Which tasks are asked for; "" and `None` ask nothing. Times are seconds since the epoch."""

    status: str = ""
    project: str = ""
    plan: str = ""
    name: str = ""
    worker: str = ""
    search: str = ""
    """What stands in the name or the command, small and capital letters alike, or how the id begins."""
    created_after: float | None = None
    created_before: float | None = None

    def __post_init__(self) -> None:
        if self.status and self.status not in (*LIVE_STATUSES, *DONE_STATUSES):
            raise SettingsError(
                f"status: {self.status!r} is none; expected one of {', '.join((*LIVE_STATUSES, *DONE_STATUSES))}"
            )

    def takes(self, name: str, task: _Facts) -> bool:
        """Whether a task is asked for. `name`: its id."""
        asked = ((self.project, task.project), (self.plan, task.plan), (self.name, task.name))
        if any(wanted and wanted != got for wanted, got in asked) or (self.worker and self.worker not in task.workers):
            return False
        if self.search and not _is_found(self.search.lower(), name, task):
            return False
        if self.created_after is not None and not (task.submitted or 0.0) >= self.created_after:
            return False
        return self.created_before is None or (task.submitted or 0.0) < self.created_before

    def wanted(self) -> Wanted:
        """The same of results."""
        return Wanted(
            outcome=TaskOutcome(self.status) if self.status else None,
            project=self.project,
            plan=self.plan,
            name=self.name,
            worker=self.worker,
            search=self.search,
            created_after=self.created_after,
            created_before=self.created_before,
        )


@dataclass(frozen=True, slots=True)
class _Facts:
    """What a task is asked about, whether it is done or not."""

    project: str
    plan: str
    name: str
    workers: tuple[str, ...]
    submitted: float | None
    started: float | None
    ended: float | None
    command: tuple[str, ...]

    def key(self, field: str, task: str, status: str) -> Key:
        match field:
            case "created":
                return task
            case "started":
                return _time(self.started)
            case "ended":
                return _time(self.ended)
            case "name":
                return self.name
            case "project":
                return self.project
            case "worker":
                return self.workers[0] if self.workers else ""
            case _:
                return status


class TaskLists:
    """Runs on the coordinator's event loop.

    Args:
        show: makes a task that is not done into what the API shows.
        history: of the tasks that are done.
    """

    def __init__(self, pool: Pool, show: Callable[[LiveTask], dict[str, Any]], history: History) -> None:
        self._pool = pool
        self._show = show
        self._history = history

    async def page(self, wanted: TaskFilter, order: Order, behind: Place | None, limit: int) -> dict[str, Any]:
        """Return one page: `tasks`, and `next`, the cursor of the next page. Raises `ResultsBusy`."""
        found: dict[str, Row[LiveTask | Envelope]] = {}
        if wanted.status not in DONE_STATUSES:
            found |= {row[1]: row for row in await self._live(wanted, order, behind, limit + 1)}
        if wanted.status not in LIVE_STATUSES:
            recent: Iterable[Row[Envelope]] = first_rows(self._recent(wanted, order, behind), order, limit + 1)
            done = await asyncio.to_thread(
                self._history.page, wanted.wanted(), limit=limit + 1, order=order_of_results(order), behind=behind
            )
            archived: Iterable[Row[Envelope]] = ((row["sort_key"], row["task"], envelope_of(row)) for row in done)
            for done_rows in (recent, archived):
                for row in done_rows:
                    found.setdefault(row[1], row)
        rows: list[Row[LiveTask | Envelope]] = first_rows(found.values(), order, limit + 1)
        shown = [
            self._show(task) if isinstance(task, LiveTask) else models.done_task(name, task)
            for _, name, task in rows[:limit]
        ]
        return {"tasks": shown, "next": next_cursor(rows, order, limit)}

    async def _live(self, wanted: TaskFilter, order: Order, behind: Place | None, limit: int) -> list[Row[LiveTask]]:
        rows: list[Row[LiveTask]] = []
        for number, task in enumerate(self._candidates(order, behind), 1):
            if (live := self._pool.live(task)) is not None and wanted.takes(task, facts := _of_live(live)):
                status = self._pool.status(live)
                key = facts.key(order.field, task, status)
                if wanted.status in ("", status) and is_behind(key, task, order, behind):
                    rows.append((key, task, live))
                    if order.field == "created" and len(rows) == limit:
                        break
            if number % SLICE == 0:
                rows = first_rows(rows, order, limit)
                await asyncio.sleep(0)
        return first_rows(rows, order, limit)

    def _candidates(self, order: Order, behind: Place | None) -> list[str]:
        """Return the tasks that may be on the page; where they are sorted by their ids, those behind the place, in order."""
        tasks = [task for (task,) in self._pool.mirror.all(Kind.TASK)]
        if order.field != "created":
            return tasks
        tasks.sort()
        if order.descending:
            return tasks[: len(tasks) if behind is None else bisect_left(tasks, behind.name)][::-1]
        return tasks[0 if behind is None else bisect_right(tasks, behind.name) :]

    def _recent(self, wanted: TaskFilter, order: Order, behind: Place | None) -> Iterator[Row[Envelope]]:
        for task, envelope in self._pool.all_recent():
            if wanted.status in ("", envelope.outcome.value) and wanted.takes(task, facts := _of_result(envelope)):
                key = facts.key(order.field, task, envelope.outcome.value)
                if is_behind(key, task, order, behind):
                    yield key, task, envelope


def order_of_results(order: Order) -> Order:
    """Return the same order among results, which call a task's last status its outcome."""
    return Order("outcome", order.descending) if order.field == "status" else order


def _is_found(text: str, name: str, task: _Facts) -> bool:
    return name.startswith(text) or text in task.name.lower() or text in " ".join(task.command).lower()


def _of_live(live: LiveTask) -> _Facts:
    told = live.specification
    workers = live.attempt.workers
    return _Facts(
        told.project, told.plan, told.name, workers, told.submitted, live.started, None, shortened(told.command)
    )


def _of_result(told: Envelope) -> _Facts:
    return _Facts(
        told.project, told.plan, told.name, told.workers, told.submitted, told.started, told.ended, told.command
    )


def _time(wall: float | None) -> int:
    if wall is None or not 0 <= wall * 1e6 <= MAX_INTEGER:
        return LAST
    return min(microseconds(wall), LAST)
