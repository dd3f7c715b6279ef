"""The routes of lists: each is filtered, sorted by one field, and given in pages.

`sort` names a field, with a `-` before it for the greatest first. An answer's `next` is the `cursor` of the next page; it
is null on the last one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query

from dtf_lightning.farm.results.routes import read_time
from dtf_lightning.farm.rules.paging import Key, Row, page, read_cursor, read_order
from dtf_lightning.farm.server.lists.tasks import SORTED_BY, TaskFilter, TaskLists
from dtf_lightning.farm.server.lists.workers import WORKERS_SORTED_BY, show_workers, worker_key

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_PAGE = 1000
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]


def add_lists(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    tasks = TaskLists(coordinator.pool, coordinator.tasks.show, coordinator.history)

    @app.get("/api/tasks", operation_id="task.list")
    async def list_tasks(
        status: str = "",
        project: str = "",
        plan: str = "",
        name: str = "",
        worker: str = "",
        search: str = "",
        created_after: str = "",
        created_before: str = "",
        sort: str = "",
        limit: Limit = 100,
        cursor: str = "",
    ) -> dict[str, Any]:
        """Newest first (`sort=-created`). `created_after`, `created_before`: ISO 8601, of the submission.

        `search`: what stands in the name or the command, small and capital letters alike, or how the id begins.
        """
        order = read_order(sort, SORTED_BY, "-created")
        wanted = TaskFilter(
            status=status,
            project=project,
            plan=plan,
            name=name,
            worker=worker,
            search=search,
            created_after=read_time("created_after", created_after),
            created_before=read_time("created_before", created_before),
        )
        return await tasks.page(wanted, order, read_cursor(cursor, order, SORTED_BY), limit)

    @app.get("/api/workers", operation_id="worker.list")
    async def list_workers(
        status: str = "",
        label: str = "",
        coordinator_id: str = "",
        sort: str = "",
        limit: Limit = MAX_PAGE,
        cursor: str = "",
    ) -> dict[str, Any]:
        """By their names (`sort=worker_id`). `coordinator_id`: which holds their connections."""
        shown = [
            worker
            for worker in show_workers(coordinator.pool, coordinator.pool.workers())
            if status in ("", worker["status"])
            and (not label or label in worker["capabilities"]["labels"])
            and coordinator_id in ("", worker["metadata"]["coordinator"])
        ]
        return page_of("workers", "worker_id", shown, worker_key, WORKERS_SORTED_BY, sort, limit, cursor)


def page_of(
    what: str,
    name: str,
    shown: list[dict[str, Any]],
    key: Callable[[str, Mapping[str, Any]], Key],
    fields: Mapping[str, type],
    sort: str,
    limit: int,
    cursor: str,
) -> dict[str, Any]:
    """Return one page of a list that is in memory.

    Args:
        what: the list's name in the answer.
        name: the field that tells its rows apart, by which it is sorted without `sort`.
        shown: the rows as the API shows them.
        key: returns what a row is sorted by, of a field's name and the row.
        fields: by which it can be sorted, and of which type the keys are.
    """
    order = read_order(sort, fields, name)
    rows: list[Row[dict[str, Any]]] = [(key(order.field, row), row[name], row) for row in shown]
    found, after = page(rows, order, read_cursor(cursor, order, fields), limit)
    return {what: found, "next": after}
