"""Every route declares one operation of the table, and every operation has a route."""

from __future__ import annotations

import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute

from dtf_lightning.farm.server.routes.operations import OPERATIONS
from dtf_lightning.farm.server.updates.requests import OPERATIONS as MESSAGES
from support.farm.app import farm_app


@pytest.fixture(scope="module")
def routes():
    with farm_app() as app:
        return [route for route in app.routes if isinstance(route, APIRoute | APIWebSocketRoute)]


def test_no_route_without_an_operation_and_no_operation_without_a_route(routes):
    told = [route.operation_id if isinstance(route, APIRoute) else route.name for route in routes]
    assert len(told) == len(set(told))
    assert sorted({*told, *MESSAGES.values()}, key=str) == sorted(OPERATIONS)


def test_nothing_is_served_beside_them():
    """FastAPI's own pages would lack an operation."""
    with farm_app() as app:
        assert [route for route in app.routes if not isinstance(route, APIRoute | APIWebSocketRoute)] == []


def test_every_path_is_of_the_api_or_a_socket(routes):
    assert [route.path for route in routes if not route.path.startswith(("/api/", "/ws"))] == []
