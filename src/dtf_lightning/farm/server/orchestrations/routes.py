"""The routes of jobs that are split over devices, by the names of the requirements, and the same over the WebSocket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.progress import JobStatus
from dtf_lightning.farm.orchestrate.splitting import CannotSplitYet
from dtf_lightning.farm.security.identity import Identity, identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server.doors.hiding import submitting
from dtf_lightning.farm.server.models import StrictModel
from dtf_lightning.farm.server.orchestrations.models import OrchestrateRequest
from dtf_lightning.farm.server.orchestrations.showing import summary
from dtf_lightning.farm.server.orchestrations.subtasks import jobs
from dtf_lightning.farm.server.routes.lists import Limit, page_of

if TYPE_CHECKING:
    from dtf_lightning.farm.rules.paging import Key
    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_WAIT = 60.0
SORTED_BY: dict[str, type] = {"task_id": str, "status": str, "name": str, "completion_percentage": int}


class CancelRequest(StrictModel):
    """Which job is to end."""

    task_id: str
    reason: str = "cancelled by a client"


def add_orchestrations(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    orchestrations, pool = coordinator.standing.orchestrations, coordinator.pool

    @app.post("/api/orchestrate", operation_id="orchestration.submit")
    async def orchestrate(asked: OrchestrateRequest, request: Request) -> dict[str, Any]:
        """Split a job over devices. Again with the same `task_id`: it is one job."""
        coordinator.cluster.check_takes_work()
        with submitting(identity_of(request.scope), {asked.task_data.project}):
            return await orchestrations.submit(asked)

    @app.get("/api/orchestrated_task/{task_id}", operation_id="orchestration.get")
    async def orchestrated_task(
        task_id: str, wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0, partial: bool = False
    ) -> dict[str, Any]:
        """With `wait`: when it has ended, or after so many seconds. `partial`: with what has come of its result so far."""
        return await orchestrations.show(task_id, wait, partial=partial)

    @app.get("/api/orchestrated_tasks", operation_id="orchestration.list")
    async def orchestrated_tasks(
        status: JobStatus | None = None,
        project: str = "",
        plan: str = "",
        sort: str = "-task_id",
        limit: Limit = 100,
        cursor: str = "",
    ) -> dict[str, Any]:
        """The newest first: ids carry their time."""
        shown = [
            told
            for name, record, _ in jobs(pool)
            if project in ("", record.project) and plan in ("", record.plan, name)
            for told in [summary(pool, name, record)]
            if status is None or told["status"] == status.value
        ]
        return page_of("orchestrated_tasks", "task_id", shown, _key, SORTED_BY, sort, limit, cursor)

    @app.post("/api/cancel_orchestrated_task", operation_id="orchestration.cancel")
    async def cancel_orchestrated_task(asked: CancelRequest, request: Request) -> dict[str, Any]:
        """End a job with all its subtasks."""
        refuse_projects(identity_of(request.scope), [orchestrations.find(asked.task_id)["project"]])
        return await orchestrations.cancel(asked.task_id, asked.reason)

    async def not_yet(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, 501)

    app.add_exception_handler(CannotSplitYet, not_yet)


def over_the_socket(coordinator: Coordinator) -> Callable[[Mapping[str, Any], Identity], Awaitable[dict[str, Any]]]:
    """Return what answers `orchestrate_task`: `task_data` and `strategy`, and whatever else a request takes."""

    async def orchestrate(message: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
        coordinator.cluster.check_takes_work()
        body = {name: value for name, value in message.items() if name not in ("type", "request_id")}
        try:
            asked = OrchestrateRequest.model_validate(body)
        except ValidationError as error:
            one = error.errors()[0]
            where = ".".join(map(str, one["loc"])) or "the message"
            raise SettingsError(f"{where}: {one['msg'].removeprefix('Value error, ')}") from None
        with submitting(identity, {asked.task_data.project}):
            return await coordinator.standing.orchestrations.submit(asked)

    return orchestrate


def _key(field: str, job: Mapping[str, Any]) -> Key:
    key: Key = job[field]
    return key
