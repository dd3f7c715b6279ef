"""The data of a page that shows the farm as it is now, in one answer, and what is wrong with it."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query
from fastapi.responses import Response

from dtf_lightning.farm.results.routes import result
from dtf_lightning.farm.results.store import Wanted
from dtf_lightning.farm.rules.paging import Order
from dtf_lightning.farm.server.cluster.view import show_leader
from dtf_lightning.farm.server.lists.workers import show_workers
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import LIVE_STATUSES

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_ROWS = 500


def add_dashboard(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""

    @app.get("/api/dashboard", operation_id="dashboard.get")
    async def dashboard(limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 20) -> dict[str, Any]:
        """`limit`: of workers, of tasks that run, and of results."""
        latest = await asyncio.to_thread(
            coordinator.history.page, Wanted(), limit=limit, order=Order("recorded", descending=True)
        )
        return {**_now(coordinator, limit), "latest_results": [result(row) for row in latest]}

    @app.get("/api/findings", operation_id="health.findings")
    async def findings() -> dict[str, Any]:
        """The worst first; `changes` since this coordinator began, the latest first."""
        return coordinator.upkeep.monitor.status()

    @app.get("/api/metrics", operation_id="metrics.get")
    async def metrics() -> Response:
        """Return what was measured last and what this coordinator has counted, for Prometheus."""
        return Response(coordinator.upkeep.exposition.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _now(coordinator: Coordinator, limit: int) -> dict[str, Any]:
    """What memory holds, of one moment."""
    pool, now = coordinator.pool, coordinator.now()
    counts = dict.fromkeys(LIVE_STATUSES, 0)
    running = []
    for live in pool.live_tasks():
        status = pool.status(live)
        counts[status] += 1
        if live.attempt.workers:
            running.append(live)
    workers = show_workers(pool, pool.workers())
    states: dict[str, int] = {}
    for worker in workers:
        states[worker["status"]] = states.get(worker["status"], 0) + 1
    return {
        "timestamp": when(now),
        "revision": pool.mirror.revision,
        "status": coordinator.status(),
        "counts": {"tasks": counts, "workers": states},
        "workers": workers[:limit],
        "running": [coordinator.tasks.show(live) for live in islice(reversed(running), limit)],
        "cluster": coordinator.cluster_status(),
        "leader": show_leader(pool.mirror, now),
    }
