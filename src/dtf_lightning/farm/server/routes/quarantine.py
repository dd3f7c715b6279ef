"""The routes of quarantines: tests whose failures do not count for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import Field

from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server.clients.quarantine import NotInQuarantine, QuarantineKeeper
from dtf_lightning.farm.server.models import StrictModel
from dtf_lightning.farm.verdicts.quarantine import MAX_WORDS

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Project = Annotated[str, Path(min_length=1, max_length=100)]
Test = Annotated[str, Path(min_length=1, max_length=MAX_WORDS)]


class QuarantineRequest(StrictModel):
    """How a test is put into quarantine."""

    owner: str
    """Who mends it."""
    reason: str
    seconds: float = Field(gt=0)
    """From now, after which it counts again."""


def add_quarantine(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    keeper = QuarantineKeeper(coordinator.pool, coordinator.record, SystemClock())

    @app.get("/api/quarantine", operation_id="quarantine.list")
    async def list_quarantine(project: str = "") -> dict[str, Any]:
        """Return the tests in quarantine, and those whose quarantine has expired lately. `project`: only of this one."""
        return keeper.list(project)

    @app.put("/api/quarantine/{project}/{test:path}", operation_id="quarantine.set")
    async def set_quarantine(
        project: Project, test: Test, asked: QuarantineRequest, request: Request
    ) -> dict[str, Any]:
        """Let a test fail for a while, or change until when; its owner mends it."""
        identity = identity_of(request.scope)
        refuse_projects(identity, [project])
        return await keeper.add(
            project, test, owner=asked.owner, reason=asked.reason, seconds=asked.seconds, by=identity.subject
        )

    @app.delete("/api/quarantine/{project}/{test:path}", operation_id="quarantine.remove")
    async def remove_quarantine(project: Project, test: Test, request: Request) -> dict[str, Any]:
        """Let a test count again."""
        refuse_projects(identity_of(request.scope), [project])
        try:
            await keeper.remove(project, test)
        except NotInQuarantine as error:
            raise HTTPException(404, str(error)) from error
        return {"project": project, "test": test, "removed": True}
