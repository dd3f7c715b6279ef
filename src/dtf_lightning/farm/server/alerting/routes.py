"""The routes of alerts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import Field

from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.server.alerting.desk import UnknownAlert
from dtf_lightning.farm.server.models import StrictModel

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Name = Annotated[str, Path(min_length=1, max_length=100)]


class SilenceRequest(StrictModel):
    """Of what nothing is to be said, and for how long."""

    rule: str = "*"
    """A pattern of rules' or incidents' names."""
    subject: str = "*"
    """A pattern of subjects."""
    seconds: float = Field(gt=0)
    reason: str


def add_alerts(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    desk = coordinator.upkeep.alerts

    @app.get("/api/alerts", operation_id="alert.list")
    async def list_alerts(*, open_only: bool = False) -> dict[str, Any]:
        """Return the incidents, open ones first, the silences, the rules and the handlers' names. `open_only`: none that is over."""
        return desk.show(everything=not open_only)

    @app.post("/api/alerts/{incident}/acknowledge", operation_id="alert.acknowledge")
    async def acknowledge(incident: Name, request: Request) -> dict[str, Any]:
        """Say that somebody is at it: it does not escalate."""
        try:
            return await desk.acknowledge(incident, identity_of(request.scope).subject)
        except UnknownAlert as error:
            raise HTTPException(404, str(error)) from error

    @app.post("/api/silences", operation_id="alert.silence")
    async def silence(asked: SilenceRequest, request: Request) -> dict[str, Any]:
        """Let nothing be said of some alerts for a while."""
        by = identity_of(request.scope).subject
        return await desk.silence(asked.rule, asked.subject, seconds=asked.seconds, reason=asked.reason, by=by)

    @app.delete("/api/silences/{silence}", operation_id="alert.unsilence")
    async def unsilence(silence: Name) -> dict[str, Any]:
        """Let it be said again."""
        try:
            await desk.unsilence(silence)
        except UnknownAlert as error:
            raise HTTPException(404, str(error)) from error
        return {"silence": silence, "removed": True}

    @app.post("/api/alert-handlers/{handler}/test", operation_id="alert.test")
    async def try_handler(handler: Name) -> dict[str, Any]:
        """Let a handler of the coordinator that answers say that this is a test; `told` says whether it could."""
        try:
            return await desk.try_handler(handler)
        except UnknownAlert as error:
            raise HTTPException(404, str(error)) from error
