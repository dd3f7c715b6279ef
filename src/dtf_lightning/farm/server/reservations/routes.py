"""The routes of reservations."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Request
from pydantic import AwareDatetime, Field

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.server.models import StrictModel
from dtf_lightning.farm.server.reservations.keeper import ReservationKeeper, UnknownReservation

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Name = Annotated[str, Path(min_length=1, max_length=100)]


class ReservationRequest(StrictModel):
    """Which workers, when, and for whom."""

    workers: list[Annotated[str, Field(min_length=1, max_length=200)]] = Field(default_factory=list, max_length=1000)
    """Their names; else `number` and `needs`."""
    number: int = Field(default=1, ge=1, le=1000)
    needs: dict[str, float] = Field(default_factory=dict)
    """What each of them has."""
    labels: list[str] = Field(default_factory=list)
    begin: AwareDatetime | None = None
    """Without it now."""
    seconds: float = Field(gt=0)
    lead: float = Field(default=3600.0, ge=0)
    """Seconds before the begin from which on only that starts which is expected to end before it."""
    project: str = Field(default="", max_length=100)
    """Whose tasks may start there; without it nobody's."""
    reason: str = Field(default="", max_length=1000)


def add_reservations(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    keeper = ReservationKeeper(coordinator.pool, coordinator.record, SystemClock())

    @app.get("/api/reservations", operation_id="reservation.list")
    async def list_reservations() -> dict[str, Any]:
        """By when they begin; those that are over for a day at least."""
        return {"reservations": keeper.list()}

    @app.post("/api/reservations", operation_id="reservation.make")
    async def make(asked: ReservationRequest, request: Request) -> dict[str, Any]:
        """Reserve workers: what runs there goes on, and nothing else starts."""
        if not asked.workers and not asked.needs and not asked.labels:
            raise SettingsError("say which workers: by `workers`, or by `needs` or `labels` and their `number`")
        begin: datetime | None = asked.begin
        return await keeper.make(
            workers=asked.workers,
            number=asked.number,
            needs=asked.needs,
            labels=asked.labels,
            begin=None if begin is None else begin.timestamp(),
            seconds=asked.seconds,
            lead=asked.lead,
            project=asked.project,
            reason=asked.reason,
            by=identity_of(request.scope).subject,
        )

    @app.delete("/api/reservations/{name}", operation_id="reservation.cancel")
    async def cancel(name: Name) -> dict[str, Any]:
        """Take a reservation back."""
        try:
            await keeper.cancel(name)
        except UnknownReservation as error:
            raise HTTPException(404, str(error)) from error
        return {"reservation": name, "cancelled": True}
