"""The routes of plans: one is submitted as it is written, and followed by its id.

Rule: the ids of a plan's tasks are made from the plan's, so that a plan that is submitted again is submitted once; where
only a part of it was accepted, the rest is.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002  # FastAPI reads the annotation of a route
from fastapi.responses import JSONResponse
from pydantic import Field

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.reading import parse_plan
from dtf_lightning.farm.plans.requests import requests_of
from dtf_lightning.farm.record.task_id import array_id, derived_task_id
from dtf_lightning.farm.record.writes import Submission
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server import models

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator

MAX_TEXT = 8 * 1024 * 1024
AT_ONCE = 1_000
"""Tasks that are submitted together: each has some seconds to be written."""


class PlanRequest(models.StrictModel):
    """A plan as it is submitted."""

    plan_id: str
    """Chosen by the client: a UUID of version 7."""
    plan: str | dict[str, Any] = Field(max_length=MAX_TEXT)
    """Its YAML, as text or as the same in JSON."""
    source: str = ""
    """Digest of the archive that each task unpacks."""
    folder: str = ""
    """Where in it the plan was started."""
    strict: bool = False
    """Refuse what no worker that is there could do; else it waits, with a warning."""


def add_plans(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    tasks = coordinator.tasks

    @app.post("/api/plans", operation_id="plan.submit")
    async def submit_plan(request: PlanRequest, asking: Request) -> JSONResponse:
        """Accept all tasks of a plan. Again with the same `plan_id`: what was accepted before is, once."""
        coordinator.cluster.check_takes_work()
        coordinator.tasks.check_id(request.plan_id)
        name, project, submissions = await asyncio.to_thread(_expand, request)
        refuse_projects(identity_of(asking.scope), {one.project for one in submissions} | {project})
        told: list[dict[str, Any]] = []
        for start in range(0, len(submissions), AT_ONCE):
            told += await tasks.submit(submissions[start : start + AT_ONCE], strict=request.strict)
        conflict = any(one["submission"] == Submission.CONFLICT.value for one in told)
        answer = {"plan_id": request.plan_id, "name": name, "project": project, "tasks": told}
        if conflict:
            answer["error"] = f"another plan was submitted under the id {request.plan_id}"
        return JSONResponse(answer, 409 if conflict else 200)


def _expand(request: PlanRequest) -> tuple[str, str, list[models.TaskRequest]]:
    """Return a plan's name, its project, and its tasks, a dependency before what needs it. Raises `SettingsError`."""
    text = request.plan if isinstance(request.plan, str) else json.dumps(request.plan)
    plan = parse_plan(text, "the plan")
    if request.folder.startswith("/") or ".." in request.folder.split("/"):
        raise SettingsError(f"the folder {request.folder!r} must lie in the task's own workspace")
    ids = _ids(request.plan_id)

    def new_id(is_array: bool) -> str:
        return array_id(next(ids)) if is_array else next(ids)

    fields = requests_of(plan, request.plan_id, new_id, source=request.source, folder=request.folder)
    return plan.name, plan.project, [models.TaskRequest.model_validate(one) for one in fields]


def _ids(plan_id: str) -> Iterator[str]:
    number = 0
    while True:
        yield derived_task_id(plan_id, number)
        number += 1
