"""The route of what the farm scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtf_lightning.farm.server.scaling.telling import show_scaling

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator


def add_scaling(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the route to a coordinator's application."""

    @app.get("/api/scaling", operation_id="scaling.get")
    async def scaling() -> dict[str, Any]:
        """As of this coordinator's last look; `steps` are those of all leaders, the latest first."""
        return show_scaling(coordinator.upkeep.scaler)
