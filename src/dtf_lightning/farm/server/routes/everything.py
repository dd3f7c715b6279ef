"""The routes of this room, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtf_lightning.farm.server.alerting.routes import add_alerts
from dtf_lightning.farm.server.orchestrations.routes import add_orchestrations
from dtf_lightning.farm.server.reservations.routes import add_reservations
from dtf_lightning.farm.server.routes.cluster import add_cluster
from dtf_lightning.farm.server.routes.dashboard import add_dashboard
from dtf_lightning.farm.server.routes.description import add_description
from dtf_lightning.farm.server.routes.lists import add_lists
from dtf_lightning.farm.server.routes.outside import add_outside
from dtf_lightning.farm.server.routes.plans import add_plans
from dtf_lightning.farm.server.routes.quarantine import add_quarantine
from dtf_lightning.farm.server.routes.schedules import add_schedules
from dtf_lightning.farm.server.routes.socket import add_socket
from dtf_lightning.farm.server.routes.tokens import add_tokens
from dtf_lightning.farm.server.scaling.routes import add_scaling
from dtf_lightning.farm.server.secrets.routes import add_secrets

if TYPE_CHECKING:
    from fastapi import FastAPI

    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.doors.doors import Doors


def add_everything(app: FastAPI, coordinator: Coordinator, doors: Doors) -> None:
    """Add them to a coordinator's application that has all others: its description comes last."""
    add_tokens(app, doors.office)
    add_secrets(app, doors.secrets)
    for add in (
        add_alerts,
        add_cluster,
        add_lists,
        add_plans,
        add_orchestrations,
        add_quarantine,
        add_reservations,
        add_schedules,
        add_scaling,
        add_socket,
        add_outside,
        add_dashboard,
    ):
        add(app, coordinator)
    add_description(app)
