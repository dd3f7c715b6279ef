"""The clients' WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import FastAPI, WebSocket  # noqa: TC002  # FastAPI reads the annotation of a route

from dtf_lightning.farm.server.orchestrations.routes import over_the_socket
from dtf_lightning.farm.server.routes.cluster import answers
from dtf_lightning.farm.server.updates.socket import ClientSockets

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator


def add_socket(app: FastAPI, coordinator: Coordinator) -> None:
    """Add it to a coordinator's application."""
    deeds = {"orchestrate_task": over_the_socket(coordinator)}
    clients = ClientSockets(coordinator.updates, answers(coordinator), deeds)

    @app.websocket("/ws", name="client.connect")
    async def client_socket(socket: WebSocket) -> None:
        await clients.serve(socket)
