"""The routes of this room, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtf_lightning.farm.server.orchestrations.routes import add_orchestrations
from dtf_lightning.farm.server.routes.cluster import add_cluster
from dtf_lightning.farm.server.routes.dashboard import add_dashboard
from dtf_lightning.farm.server.routes.description import add_description
from dtf_lightning.farm.server.routes.lists import add_lists
from dtf_lightning.farm.server.routes.outside import add_outside
from dtf_lightning.farm.server.routes.plans import add_plans
from dtf_lightning.farm.server.routes.quarantine import add_quarantine
from dtf_lightning.farm.server.routes.schedules import add_schedules
from dtf_lightning.farm.server.routes.socket import add_socket

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator


def add_everything(app: FastAPI, coordinator: Coordinator) -> None:
    """Add them to a coordinator's application that has all others: its description comes last."""
    for add in (
        add_cluster,
        add_lists,
        add_plans,
        add_orchestrations,
        add_quarantine,
        add_schedules,
        add_socket,
        add_outside,
        add_dashboard,
    ):
        add(app, coordinator)
    add_description(app)
