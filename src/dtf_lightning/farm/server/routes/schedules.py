"""The routes of schedules. One is registered by submitting its plan (`POST /api/plans`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Path

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Name = Annotated[str, Path(min_length=1, max_length=100)]


def add_schedules(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    schedules = coordinator.standing.schedules

    @app.get("/api/schedules", operation_id="schedule.list")
    async def list_schedules() -> dict[str, Any]:
        return {"schedules": await schedules.list()}

    @app.get("/api/schedules/{name}", operation_id="schedule.get")
    async def get_schedule(name: Name) -> dict[str, Any]:
        return await schedules.whole(name)

    @app.delete("/api/schedules/{name}", operation_id="schedule.remove")
    async def remove_schedule(name: Name) -> dict[str, Any]:
        return await schedules.remove(name)

    @app.post("/api/schedules/{name}/pause", operation_id="schedule.pause")
    async def pause_schedule(name: Name) -> dict[str, Any]:
        return await schedules.pause(name, paused=True)

    @app.post("/api/schedules/{name}/resume", operation_id="schedule.resume")
    async def resume_schedule(name: Name) -> dict[str, Any]:
        return await schedules.pause(name, paused=False)

    @app.post("/api/schedules/{name}/run", operation_id="schedule.run")
    async def run_schedule(name: Name, plan_id: str) -> dict[str, Any]:
        """`plan_id`: a UUID of version 7, chosen by the client: asked again with the same, it runs once."""
        coordinator.cluster.check_takes_work()
        return await schedules.run_now(name, plan_id)
