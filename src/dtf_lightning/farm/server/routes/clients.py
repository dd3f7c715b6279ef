"""The routes of what a coordinator does for clients beside accepting and showing tasks. Errors are those of `server/api.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Query, Request
from fastapi.responses import Response

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.server.clients.ends import TaskEnds
from dtf_lightning.farm.server.clients.reruns import RerunRequest, TaskReruns
from dtf_lightning.farm.server.clients.retries import TaskRetries
from dtf_lightning.farm.server.clients.stdin import TaskInputs

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_WAIT = 60.0
MAX_CHUNK = 4 * 1024 * 1024


def add_client_routes(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    inputs = TaskInputs(coordinator.pool, coordinator.tasks.files)
    retries = TaskRetries(coordinator.pool, coordinator.tasks, coordinator.history, SystemClock())

    reruns = TaskReruns(coordinator.tasks, coordinator.history, SystemClock())
    ends = TaskEnds(coordinator.pool, coordinator.tasks)

    @app.get("/api/task_ends", operation_id="task.ends")
    async def task_ends(tasks: str, wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0) -> dict[str, Any]:
        """Return those of up to 500 tasks (`tasks=ID,ID`) that have ended; with `wait` as soon as there is one."""
        return await ends.of([name for name in tasks.split(",") if name], wait)

    @app.post("/api/tasks/{task_id}/retry", operation_id="task.retry")
    async def retry(task_id: str, retry_id: str = "") -> dict[str, Any]:
        """Submit a task that is done again, and what was skipped because of its end, as new tasks.

        `retry_id`: a new id of the client's, which makes asking again safe. Ask again with it while `num_left` is not 0.
        """
        return await retries.retry(task_id, retry_id)

    @app.get("/api/tasks/{task_id}/past", operation_id="task.past")
    async def past(task_id: str) -> dict[str, Any]:
        """Return how a test that has ended fared: its attempts, its earlier runs, and the last one that passed."""
        return await reruns.past(task_id)

    @app.post("/api/tasks/{task_id}/rerun", operation_id="task.rerun")
    async def rerun(task_id: str, asked: RerunRequest) -> dict[str, Any]:
        """Run a task that is done once more, as a task of its own that stands for nothing in its plan."""
        return await reruns.rerun(task_id, asked)

    @app.post("/api/plans/{plan_id}/retry", operation_id="plan.retry")
    async def retry_plan(plan_id: str, retry_id: str = "") -> dict[str, Any]:
        """Submit again what did not complete of a plan. `retry_id`, `num_left`: as for a task."""
        return await retries.retry_plan(plan_id, retry_id)

    @app.post("/api/tasks/{task_id}/stdin", operation_id="task.stdin")
    async def add_stdin(
        task_id: str, offset: Annotated[int, Query(ge=0)], request: Request, complete: bool = False
    ) -> dict[str, Any]:
        """Add to what a task reads; `complete` with the last of it."""
        data = await request.body()
        if len(data) > MAX_CHUNK:
            raise SettingsError(f"a chunk of input has {len(data)} bytes, {MAX_CHUNK} are allowed")
        return {"size": await inputs.add(task_id, offset, data, complete=complete)}

    @app.get("/api/tasks/{task_id}/stdin", operation_id="attempt.stdin")
    async def read_stdin(
        task_id: str, offset: Annotated[int, Query(ge=0)] = 0, wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0
    ) -> Response:
        """Return what there is of it from `offset` on; `X-Complete: 1` with the last of it."""
        data, complete = await inputs.read(task_id, offset, wait)
        return Response(data, media_type="application/octet-stream", headers={"X-Complete": "1" if complete else "0"})
