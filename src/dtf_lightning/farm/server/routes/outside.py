"""The routes for workers that were written by others (`docs/farm.md` has the order in which they are used)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.security.ownership import refuse_name
from dtf_lightning.farm.server.lists.workers import show_workers
from dtf_lightning.farm.server.outside.models import Completion, Failure, HealthReport, Registration
from dtf_lightning.farm.server.outside.workers import RegisterAgain, Stale
from dtf_lightning.farm.server.tasks import UnknownTask

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_WAIT = 10.0
"""Seconds: less than those after which a silent worker is taken for gone."""


def add_outside(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    outside, pool = coordinator.outside, coordinator.pool

    @app.post("/api/register", operation_id="worker.register")
    async def register(asked: Registration, request: Request) -> dict[str, Any]:
        refuse_name(identity_of(request.scope), asked.worker_id)
        coordinator.cluster.check_takes_work()
        return await outside.register(asked)

    @app.get("/api/workers/{worker_id}/tasks", operation_id="worker.tasks")
    async def tasks(
        worker_id: str, session: str, known: str = "", wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0
    ) -> dict[str, Any]:
        """With `wait`: as soon as they are others than `known`, the revisions of those that it has, with commas."""
        return await outside.tasks(worker_id, session, _revisions(known), wait)

    @app.post("/api/tasks/{task_id}/complete", operation_id="attempt.complete")
    async def complete(task_id: str, asked: Completion, request: Request) -> dict[str, Any]:
        refuse_name(identity_of(request.scope), asked.worker_id)
        return await outside.end(task_id, asked, OutcomeKind.COMPLETED, "")

    @app.post("/api/tasks/{task_id}/fail", operation_id="attempt.fail")
    async def fail(task_id: str, asked: Failure, request: Request) -> dict[str, Any]:
        refuse_name(identity_of(request.scope), asked.worker_id)
        return await outside.end(task_id, asked, OutcomeKind(asked.kind), asked.error)

    @app.post("/api/subtasks/{subtask_id}/complete", operation_id="subtask.complete")
    async def complete_subtask(subtask_id: str, asked: Completion, request: Request) -> dict[str, Any]:
        """A subtask of a job is a task."""
        return await complete(subtask_id, asked, request)

    @app.post("/api/subtasks/{subtask_id}/fail", operation_id="subtask.fail")
    async def fail_subtask(subtask_id: str, asked: Failure, request: Request) -> dict[str, Any]:
        return await fail(subtask_id, asked, request)

    @app.post("/api/health", operation_id="worker.health")
    async def health(asked: HealthReport, request: Request) -> dict[str, Any]:
        refuse_name(identity_of(request.scope), asked.worker_id)
        return await outside.health(asked)

    @app.get("/api/capabilities", operation_id="worker.capabilities")
    async def capabilities(worker_id: str = "") -> dict[str, Any]:
        """What one worker offers, or each."""
        workers = pool.workers()
        if worker_id and worker_id not in workers:
            raise UnknownTask(f"this farm knows no worker {worker_id!r}")
        chosen = {name: record for name, record in workers.items() if worker_id in ("", name)}
        return {
            "workers": [
                {name: one[name] for name in ("worker_id", "hardware_id", "capabilities")}
                for one in show_workers(pool, chosen)
            ]
        }

    async def refused(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error), "recorded": False}, 409)

    for kind in (RegisterAgain, Stale):
        app.add_exception_handler(kind, refused)


def _revisions(text: str) -> frozenset[int]:
    try:
        found = frozenset(int(part) for part in text.split(",") if part)
    except ValueError:
        raise SettingsError(f"known: expected revisions with commas, such as 17,23, got {text[:80]!r}") from None
    return found
