"""The coordinator's routes. Each declares the name of its operation, which is what permissions are given for (`doors/permits.py`).

Errors are JSON objects `{"error": "one sentence"}`: 401 and 403 (`access.py`), 404 for what is not known, 409 for another
task under the same id or output behind a gap, 422 for input that cannot work, 429 for too many tasks, 501 for what comes
later, 503 with `Retry-After` while etcd does not answer, 507 where a disk is full, or etcd.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.websockets import WebSocketDisconnect

from dtf_lightning.errors import CoordinatorEnds, OutcomeUnknown, SettingsError, StoreError, StoreFull, StoreUnavailable
from dtf_lightning.farm.record.values import WorkerRecord, WorkerState
from dtf_lightning.farm.record.writes import Submission
from dtf_lightning.farm.results.artifact_routes import add_artifacts, holder_of, request_chunks
from dtf_lightning.farm.results.routes import add_results
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.change_worker import change_worker, find_worker
from dtf_lightning.farm.server.clients.keys import OtherRequest
from dtf_lightning.farm.server.doors.hiding import submitting
from dtf_lightning.farm.server.doors.subtasks import as_submitted
from dtf_lightning.farm.server.files import OutOfOrder
from dtf_lightning.farm.server.lists.plans import plan_counts
from dtf_lightning.farm.server.lists.workers import show_workers
from dtf_lightning.farm.server.routes.clients import add_client_routes
from dtf_lightning.farm.server.routes.everything import add_everything
from dtf_lightning.farm.server.routes.projects import add_projects
from dtf_lightning.farm.server.tasks import NoRoom, TooManyTasks, UnknownTask

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.doors.doors import Doors

RETRY_AFTER = "1"
"""Seconds after which to ask again while etcd does not answer."""
MAX_WAIT = 60.0
MAX_CHUNK = 4 * 1024 * 1024


def build_app(coordinator: Coordinator, doors: Doors) -> FastAPI:
    """Return the application of one coordinator. Who asks is in the scope (`security.identity`)."""
    app = FastAPI(title="dtf farm", version=coordinator.version, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_tasks(app, coordinator)
    _add_plans(app, coordinator)
    _add_output(app, coordinator)
    _add_workers(app, coordinator)
    _add_status(app, coordinator)
    add_projects(app, coordinator)
    add_results(app, coordinator.history)
    add_artifacts(app, coordinator.tasks.files.artifacts, coordinator.tasks.task)
    add_client_routes(app, coordinator)
    add_everything(app, coordinator, doors)
    doors.permits.stand_before(app.routes)
    return app


def _add_tasks(app: FastAPI, coordinator: Coordinator) -> None:
    tasks = coordinator.tasks

    @app.post("/api/tasks", operation_id="task.submit")
    async def submit(request: Request) -> JSONResponse:
        coordinator.cluster.check_takes_work()
        body = await request.body()
        submission = models.Submission.model_validate_json(body)
        identity = identity_of(request.scope)
        asked = as_submitted(identity, submission.tasks, coordinator.pool)
        with submitting(identity, {task.project for task in asked}):
            told = await tasks.submit(asked, strict=submission.strict)
        conflict = any(one["submission"] == Submission.CONFLICT.value for one in told)
        return JSONResponse({"tasks": told}, 409 if conflict else 200)

    @app.get("/api/tasks/{task_id}", operation_id="task.get")
    async def get_task(
        task_id: str,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0,
        other_than: Annotated[int | None, Query(ge=0)] = None,
    ) -> dict[str, Any]:
        """With `wait`: when it has ended, or has another attempt than `other_than`, or after so many seconds."""
        return await (tasks.wait(task_id, wait, other_than) if wait else tasks.task(task_id))

    @app.post("/api/tasks/{task_id}/cancel", operation_id="task.cancel")
    async def cancel(task_id: str, reason: str = "cancelled by a client") -> dict[str, Any]:
        return await tasks.cancel(task_id, reason)


def _add_plans(app: FastAPI, coordinator: Coordinator) -> None:
    tasks = coordinator.tasks

    @app.get("/api/plans/{plan_id}", operation_id="plan.get")
    async def get_plan(
        plan_id: str,
        after: Annotated[int, Query(ge=0)] = 0,
        left: Annotated[int, Query(ge=0)] = 0,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT)] = 0,
        unfinished: bool = False,
    ) -> dict[str, Any]:
        """Which tasks have ended since the revision `after`; with `wait` when there is one, or after so many seconds.

        Without any of these also how many are at what (`counts`), for which the plan must be known.
        """
        told = await tasks.plan(plan_id, after, left, wait, unfinished=unfinished)
        if after or wait or unfinished:
            return told
        return told | await plan_counts(coordinator.pool, coordinator.history, plan_id)

    @app.post("/api/plans/{plan_id}/cancel", operation_id="plan.cancel")
    async def cancel_plan(plan_id: str, reason: str = "cancelled by a client") -> dict[str, Any]:
        await coordinator.standing.orchestrations.cancel_plan(plan_id, reason)
        return await tasks.cancel_plan(plan_id, reason)


def _add_output(app: FastAPI, coordinator: Coordinator) -> None:
    tasks = coordinator.tasks

    @app.get("/api/tasks/{task_id}/logs", operation_id="task.logs")
    async def logs(
        task_id: str,
        revision: Annotated[int, Query(ge=0)] = 0,
        offset: Annotated[int, Query(ge=0)] = 0,
        follow: bool = False,
        rank: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Bytes of one attempt, the latest without `revision`, of a gang's member; with `follow` until it has ended."""
        task = await tasks.task(task_id)
        attempt = revision or await tasks.latest_attempt(task_id, timeout=MAX_WAIT if follow else 0)
        if follow and not attempt:
            task = await tasks.task(task_id)  # it may have ended meanwhile
        holder = holder_of(task)
        if holder != task_id:
            attempt = revision or await tasks.latest_attempt(holder, timeout=0)
        headers = {"X-Attempt-Revision": str(attempt)}
        if not attempt and (task.get("results") or {}).get("log_bytes"):
            return _error(410, f"the output of {task_id} is kept no more (`retention.logs` of the farm's settings)")
        if not attempt:
            return Response(b"", media_type="application/octet-stream", headers=headers)
        chunks = tasks.output(holder, attempt, offset, follow=follow, rank=rank)
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)

    @app.post("/api/tasks/{task_id}/logs", operation_id="attempt.logs")
    async def add_logs(
        task_id: str,
        revision: int,
        offset: Annotated[int, Query(ge=0)],
        request: Request,
        rank: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        chunk = await request.body()
        if len(chunk) > MAX_CHUNK:
            raise SettingsError(f"a chunk of output has {len(chunk)} bytes, {MAX_CHUNK} are allowed")
        return JSONResponse({"size": await tasks.add_output(task_id, revision, offset, chunk, rank)})

    @app.head("/api/sources/{digest}", operation_id="source.exists")
    async def source_exists(digest: str) -> Response:
        return Response(status_code=200 if tasks.files.source(digest) is not None else 404)

    @app.get("/api/sources/{digest}", operation_id="source.get")
    async def get_source(digest: str) -> Response:
        path = tasks.files.source(digest)
        if path is None:
            return _error(404, f"the source {digest} is not here")
        return FileResponse(path, media_type="application/octet-stream")

    @app.put("/api/sources/{digest}", operation_id="source.put")
    async def put_source(digest: str, request: Request) -> Response:
        await asyncio.to_thread(tasks.files.add_source, digest, request_chunks(request))
        return Response(status_code=201)


def _add_workers(app: FastAPI, coordinator: Coordinator) -> None:
    pool = coordinator.pool

    def shown(name: str, record: WorkerRecord) -> dict[str, Any]:
        return show_workers(pool, {name: record})[0]

    async def change(name: str, **changes: Any) -> dict[str, Any]:
        return shown(name, await change_worker(pool, coordinator.record, name, **changes))

    @app.get("/api/workers/{worker_id}", operation_id="worker.get")
    async def worker(worker_id: str) -> dict[str, Any]:
        return shown(worker_id, find_worker(pool, worker_id))

    @app.post("/api/workers/{worker_id}/drain", operation_id="worker.drain")
    async def drain(worker_id: str) -> dict[str, Any]:
        return await change(worker_id, state=WorkerState.DRAINING)

    @app.post("/api/workers/{worker_id}/cordon", operation_id="worker.cordon")
    async def cordon(worker_id: str) -> dict[str, Any]:
        return await change(worker_id, cordoned=True)

    @app.post("/api/workers/{worker_id}/uncordon", operation_id="worker.uncordon")
    async def uncordon(worker_id: str) -> dict[str, Any]:
        return await change(worker_id, cordoned=False)

    @app.websocket("/ws/worker", name="worker.connect")
    async def worker_socket(socket: WebSocket) -> None:
        await socket.accept()
        try:
            await coordinator.connections.serve(socket, identity_of(socket.scope).worker)
        except (WebSocketDisconnect, RuntimeError):
            return  # Starlette raises RuntimeError where a closed socket is used


def _add_status(app: FastAPI, coordinator: Coordinator) -> None:
    @app.get("/api/status", operation_id="status.get")
    async def status() -> dict[str, Any]:
        return coordinator.status()


# --- errors ----------------------------------------------------------------------------------------------------------


def _error(status: int, text: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": text}, status, {name.replace("_", "-"): value for name, value in headers.items()})


def _add_errors(app: FastAPI) -> None:
    from pydantic import ValidationError

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, ValidationError | RequestValidationError)
        told = [
            f"{'.'.join(str(part) for part in one['loc']) or 'the body'}: {one['msg'].removeprefix('Value error, ')}"
            for one in error.errors()[:10]
        ]
        return _error(422, "; ".join(told))

    async def known(_: Request, error: Exception) -> Response:
        if isinstance(error, OutOfOrder):
            return JSONResponse({"error": str(error), "wanted": error.wanted}, 409)
        if isinstance(error, UnknownTask):
            return _error(404, str(error))
        if isinstance(error, OtherRequest):
            return _error(409, str(error))
        if isinstance(error, TooManyTasks):
            return _error(429, str(error), Retry_After="10")
        if isinstance(error, NoRoom):
            return _error(507, str(error), Retry_After="30")
        if isinstance(error, SettingsError):
            return _error(422, str(error))
        if isinstance(error, StoreFull):
            return _error(507, f"etcd's quota is used up: {error}")
        if isinstance(error, CoordinatorEnds):
            return _error(503, str(error), Retry_After=RETRY_AFTER)
        if isinstance(error, StoreUnavailable | OutcomeUnknown):
            return _error(503, f"etcd does not answer: {error}", Retry_After=RETRY_AFTER)
        return _error(500, str(error))

    async def disk(_: Request, error: Exception) -> Response:
        assert isinstance(error, OSError)
        return _error(507, f"the coordinator's disk: {error}")

    async def http(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ValidationError, invalid)
    app.add_exception_handler(RequestValidationError, invalid)
    for kind in (OutOfOrder, OtherRequest, UnknownTask, TooManyTasks, NoRoom, SettingsError, StoreError):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(OSError, disk)
