"""The routes of plans: one is submitted as it is written, and followed by its id.

Rule: the ids of a plan's tasks are made from the plan's, so that a plan that is submitted again is submitted once; where
only a part of it was accepted, the rest is.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from fastapi import Request  # noqa: TC002  # FastAPI reads the annotation of a route
from fastapi.responses import JSONResponse
from pydantic import Field

from dtf_lightning.farm.record.writes import Submission
from dtf_lightning.farm.security.identity import Forbidden, Identity, identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.clients.keys import claim_plan, renamed_requests
from dtf_lightning.farm.server.doors.hiding import submitting
from dtf_lightning.farm.server.schedules.expanding import SentPlan

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.tasks import Tasks

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
    name: str = ""
    """What it is called where it does not say so itself."""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Path that the plan names -> reference by which the farm has what lies there."""
    strict: bool = False
    """Refuse what no worker that is there could do; else it waits, with a warning."""


def add_plans(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    tasks, orchestrations = coordinator.tasks, coordinator.standing.orchestrations

    @app.post("/api/plans", operation_id="plan.submit")
    async def submit_plan(request: PlanRequest, asking: Request) -> JSONResponse:
        """Accept all tasks of a plan. Again with the same `plan_id`: what was accepted before is, once.

        One with a `schedule` is registered in the place of the one of its name, and submitted at its times.
        """
        coordinator.cluster.check_takes_work()
        coordinator.tasks.check_id(request.plan_id)
        text = request.plan if isinstance(request.plan, str) else json.dumps(request.plan)
        sent = SentPlan(
            text=text, source=request.source, folder=request.folder, inputs=request.inputs, name=request.name
        )
        plan, submissions = await asyncio.to_thread(sent.expand, request.plan_id)
        jobs = await asyncio.to_thread(sent.jobs, request.plan_id)
        identity = identity_of(asking.scope)
        projects = {one.project for one in submissions} | {plan.project}
        refuse_projects(identity, projects)
        if plan.schedule is not None and identity.projects:
            raise Forbidden("a schedule has its name in the whole farm, and this token is limited to some projects")
        if plan.schedule is not None:
            told_of = await coordinator.standing.schedules.register(plan, submissions, sent, strict=request.strict)
            return JSONResponse({"name": plan.name, "project": plan.project, "schedule": told_of})
        for job in jobs:
            await orchestrations.check(job)
        plan_id = request.plan_id
        if plan.key:
            tasks.check_possible({one.task_id: one.specification(0.0) for one in submissions})
            with submitting(identity, projects):
                plan_id = await claim_plan(plan.key, lambda of: sent.expand(of)[1], plan_id, tasks, coordinator.record)
            submissions = await asyncio.to_thread(lambda: sent.expand(plan_id)[1])
        told = await _accepted(tasks, submissions, identity, projects, strict=request.strict)
        conflict = any(one["submission"] == Submission.CONFLICT.value for one in told)
        answer: dict[str, Any] = {"plan_id": plan_id, "name": plan.name, "project": plan.project, "tasks": told}
        if jobs:
            answer["orchestrated"] = [await orchestrations.submit(job, plan_id) for job in jobs]
        if conflict:
            answer["error"] = f"another plan was submitted under the id {request.plan_id}"
        return JSONResponse(answer, 409 if conflict else 200)


async def _accepted(
    tasks: Tasks, submissions: list[models.TaskRequest], identity: Identity, projects: set[str], *, strict: bool
) -> list[dict[str, Any]]:
    """Submit a plan's tasks, and return what became of each."""
    told: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for start in range(0, len(submissions), AT_ONCE):
        part = renamed_requests(submissions[start : start + AT_ONCE], names)
        with submitting(identity, projects):
            accepted = await tasks.submit(part, strict=strict)
        for one, answer in zip(part, accepted, strict=True):
            names |= {one.task_id: answer["task_id"]} if answer["task_id"] != one.task_id else {}
            told.append(answer | {"name": one.name})
    return told
