"""The routes of projects and licences: how the farm is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path
from pydantic import Field

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.sharing_writes import SetShare
from dtf_lightning.farm.record.values import LicenceRecord, ProjectRecord
from dtf_lightning.farm.server.models import StrictModel
from dtf_lightning.farm.server.scheduling.projects import licences, projects

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
MAX_UNITS = 1_000_000
Name = Annotated[str, Path(min_length=1, max_length=100)]


class ProjectRequest(StrictModel):
    """A project as it is set; what is not named stays as it is."""

    weight: float | None = Field(default=None, gt=0, le=1e6)
    """Of twice the weight it gets twice the share."""
    limits: dict[str, Annotated[int, Field(ge=0, le=MAX_UNITS)]] | None = None
    """Licence -> how many of it the project's tasks may hold at once."""
    max_running: int | None = Field(default=None, ge=0, le=MAX_UNITS)
    """Its tasks that may run at once; 0: any number."""
    max_pending: int | None = Field(default=None, ge=0, le=MAX_UNITS)
    """Its tasks that may be there without being done, above which no more are taken (429); 0: any number."""


class LicenceRequest(StrictModel):
    """A licence as it is set."""

    total: int = Field(ge=0, le=MAX_UNITS)


def add_projects(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    pool = coordinator.pool

    def shown(name: str) -> dict[str, Any]:
        record = projects(pool.mirror).get(name, ProjectRecord())
        return {
            "name": name,
            "weight": record.weight,
            "limits": dict(record.limits),
            "max_running": record.max_running or None,
            "max_pending": record.max_pending or None,
        }

    async def write(kind: Kind, name: str, record: ProjectRecord | LicenceRecord, seen: int) -> bool:
        made = await coordinator.record.answer(SetShare(kind=kind, name=name, record=record, seen=seen))
        await pool.wait_for_change(kind, name, seen, SHOWN if made else 1.0)
        return made

    @app.get("/api/projects", operation_id="project.list")
    async def list_projects() -> dict[str, Any]:
        return {"projects": [shown(name) for name in projects(pool.mirror)]}

    @app.put("/api/projects/{name}", operation_id="project.set")
    async def set_project(name: Name, request: ProjectRequest) -> dict[str, Any]:
        for _ in range(TRIES):
            before = projects(pool.mirror).get(name, ProjectRecord())
            record = ProjectRecord(
                weight=before.weight if request.weight is None else request.weight,
                limits=before.limits if request.limits is None else request.limits,
                max_running=before.max_running if request.max_running is None else request.max_running,
                max_pending=before.max_pending if request.max_pending is None else request.max_pending,
            )
            if await write(Kind.PROJECT, name, record, pool.mirror.seen(Kind.PROJECT, name)):
                return shown(name)
        raise StoreUnavailable(f"the project {name} changes all the time, try again")

    @app.get("/api/licences", operation_id="licence.list")
    async def list_licences() -> dict[str, Any]:
        return {"licences": [{"name": name, "total": total} for name, total in licences(pool.mirror).items()]}

    @app.put("/api/licences/{name}", operation_id="licence.set")
    async def set_licence(name: Name, request: LicenceRequest) -> dict[str, Any]:
        for _ in range(TRIES):
            seen = pool.mirror.seen(Kind.LICENCE, name)
            if await write(Kind.LICENCE, name, LicenceRecord(total=request.total), seen):
                return {"name": name, "total": request.total}
        raise StoreUnavailable(f"the licence {name} changes all the time, try again")
