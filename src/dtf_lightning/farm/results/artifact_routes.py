"""The coordinator's routes for the files that tasks leave. A worker offers what it has, and brings what is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.results.artifacts import ArtifactStore, ArtifactsUnavailable, ArtifactTooLarge, Stored

UPLOADS = 4
"""That are taken at a time, each in a thread."""
SILENCE = 30.0
"""Seconds without a byte after which an upload is given up: its thread is wanted by others."""
MAX_OFFER = 1_000
"""Files of one offer."""

FindTask = Callable[[str], Awaitable[dict[str, Any]]]
"""Returns a task as the API shows it, or raises that it is unknown."""


class OfferedFile(BaseModel):
    """A file that a worker has."""

    name: str = Field(min_length=1, max_length=1000)
    size: int = Field(ge=0)
    digest: str = Field(pattern="^[0-9a-f]{64}$")


class Offer(BaseModel):
    """Files of one attempt."""

    files: list[OfferedFile] = Field(max_length=MAX_OFFER)


def add_artifacts(app: FastAPI, store: ArtifactStore, find_task: FindTask) -> None:
    """Add the routes."""
    _add_reading(app, store, find_task)
    _add_bringing(app, store, find_task)
    for kind, status in ((ArtifactTooLarge, 413), (ArtifactsUnavailable, 507)):
        app.add_exception_handler(kind, _refusal(status))


def _refusal(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def told(_: Request, error: Exception) -> Response:
        return JSONResponse({"error": str(error)}, status)

    return told


def _add_reading(app: FastAPI, store: ArtifactStore, find_task: FindTask) -> None:
    async def holder_and_attempt(task: dict[str, Any], revision: int) -> tuple[str, int]:
        if (holder := holder_of(task)) != task["task_id"]:
            task = await find_task(holder)
        return holder, revision or int(task["metadata"].get("revision") or 0)

    @app.get("/api/tasks/{task_id}/artifacts", operation_id="task.artifacts")
    async def artifacts(task_id: str, revision: Annotated[int, Query(ge=0)] = 0) -> dict[str, Any]:
        """What an attempt has left: the one whose result counts, or the latest, without `revision`."""
        task = await find_task(task_id)
        holder, attempt = await holder_and_attempt(task, revision)
        found = await asyncio.to_thread(store.all, holder, attempt) if attempt else []
        missing = (task.get("results") or {}).get("missing", []) if not revision else []
        return {
            "task_id": task_id,
            "revision": attempt,
            "artifacts": [_shown(one) for one in found],
            "missing": missing,
        }

    @app.get("/api/tasks/{task_id}/artifacts/{name:path}", operation_id="artifact.get")
    async def get_artifact(task_id: str, name: str, revision: Annotated[int, Query(ge=0)] = 0) -> Response:
        holder, attempt = await holder_and_attempt(await find_task(task_id), revision)
        stored = await asyncio.to_thread(store.find, holder, attempt, name)
        if stored is None:
            return JSONResponse({"error": f"the task {task_id} has left no artifact {name!r}"}, 404)
        headers = {"Content-Length": str(stored.size), "X-Digest": stored.digest}
        chunks = store.open(holder, attempt, stored)
        return StreamingResponse(chunks, media_type="application/octet-stream", headers=headers)


def holder_of(task: Mapping[str, Any]) -> str:
    """Return the task that holds a task's output and files, as the API shows it: itself, or the one whose result it is."""
    return str((task.get("metadata") or {}).get("reused_from") or task["task_id"])


def _add_bringing(app: FastAPI, store: ArtifactStore, find_task: FindTask) -> None:
    uploads = asyncio.Semaphore(UPLOADS)

    @app.post("/api/tasks/{task_id}/artifacts", operation_id="attempt.offer_artifacts")
    async def offer(task_id: str, revision: Annotated[int, Query(ge=1)], request: Request) -> dict[str, Any]:
        """Say which of these files are wanted, which are there already, and which are refused and why."""
        await find_task(task_id)
        offered = Offer.model_validate_json(await request.body())
        there = {(one.name, one.digest): one for one in await asyncio.to_thread(store.all, task_id, revision)}
        stored, refused, wanted = {}, {}, []
        for file in offered.files:
            if (one := there.get((file.name, file.digest))) is not None:
                stored[file.name] = one.url
            elif file.size > store.max_size:
                refused[file.name] = f"it has {file.size} bytes, {store.max_size} are allowed"
            else:
                wanted.append(file.name)
        return {"stored": stored, "refused": refused, "wanted": wanted}

    @app.put("/api/tasks/{task_id}/artifacts", operation_id="attempt.put_artifact")
    async def put_artifact(
        task_id: str, revision: Annotated[int, Query(ge=1)], name: str, digest: str, request: Request
    ) -> Response:
        await find_task(task_id)
        async with uploads:
            stored = await asyncio.to_thread(store.put, task_id, revision, name, digest, request_chunks(request))
        return JSONResponse(_shown(stored), 201)


def request_chunks(request: Request) -> Iterator[bytes]:
    """Yield a request's body in another thread, as it comes. Call it on the event loop.

    Raises `SettingsError` where nothing comes for `SILENCE` seconds, and what the server raises where the client goes.
    """
    loop = asyncio.get_running_loop()
    stream = request.stream()

    def chunks() -> Iterator[bytes]:
        while True:
            try:
                yield asyncio.run_coroutine_threadsafe(anext(stream), loop).result(SILENCE)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise SettingsError(f"nothing of the body came for {SILENCE:.0f} s: send it again") from None

    return chunks()


def _shown(stored: Stored) -> dict[str, Any]:
    return {"name": stored.name, "size": stored.size, "digest": stored.digest, "url": stored.url}
