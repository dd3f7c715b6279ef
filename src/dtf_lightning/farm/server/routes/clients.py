"""The routes of what a coordinator does for clients beside accepting and showing tasks. Errors are those of `server/api.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.server.clients.retries import TaskRetries

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator


def add_client_routes(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    retries = TaskRetries(coordinator.pool, coordinator.tasks, coordinator.history, SystemClock())

    @app.post("/api/tasks/{task_id}/retry", operation_id="task.retry")
    async def retry(task_id: str, retry_id: str = "") -> dict[str, Any]:
        """Submit a task that is done again, and what was skipped because of its end, as new tasks.

        `retry_id`: a new id of the client's, which makes asking again safe. Ask again with it while `num_left` is not 0.
        """
        return await retries.retry(task_id, retry_id)

    @app.post("/api/plans/{plan_id}/retry", operation_id="plan.retry")
    async def retry_plan(plan_id: str, retry_id: str = "") -> dict[str, Any]:
        """Submit again what did not complete of a plan. `retry_id`, `num_left`: as for a task."""
        return await retries.retry_plan(plan_id, retry_id)
