"""The routes about the coordinators themselves."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.cluster_health import SHOWN, NodeState
from dtf_lightning.farm.server.cluster.cluster import Disabled, LastNode, UnknownNode
from dtf_lightning.farm.server.cluster.pictures import as_html, as_markdown
from dtf_lightning.farm.server.cluster.view import SHORT_NAMES, nodes_of, show_health, show_leader
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.routes.lists import MAX_PAGE, Limit, page_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dtf_lightning.farm.rules.paging import Key
    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.updates.socket import Answer

NODES_SORTED_BY: dict[str, type] = {"node_id": str, "state": str, "health_status": str}
MAX_REASON = 1000


class Format(Enum):
    """How a picture of the cluster is wanted."""

    HTML = "html"
    MARKDOWN = "markdown"
    JSON = "json"


def add_cluster(app: FastAPI, coordinator: Coordinator) -> None:
    """Add the routes to a coordinator's application."""
    cluster = coordinator.cluster
    told = answers(coordinator)

    @app.get("/api/cluster/status", operation_id="cluster.status")
    async def cluster_status() -> dict[str, Any]:
        return told["get_cluster_status"]({})

    @app.get("/api/cluster/nodes", operation_id="cluster.nodes")
    async def cluster_nodes(
        state: NodeState | None = None, sort: str = "", limit: Limit = MAX_PAGE, cursor: str = ""
    ) -> dict[str, Any]:
        """By their names (`sort=node_id`)."""
        shown = [
            node for node in told["get_cluster_status"]({})["nodes"] if state is None or node["state"] == state.value
        ]
        return page_of("nodes", "node_id", shown, _node_key, NODES_SORTED_BY, sort, limit, cursor)

    @app.get("/api/cluster/health", operation_id="cluster.health")
    async def cluster_health(metrics: str = "") -> dict[str, Any]:
        """`metrics`: names with commas, such as `cpu,memory`; without it all."""
        return told["get_cluster_health"]({"metrics": metrics.split(",")} if metrics else {})

    @app.get("/api/cluster/leader", operation_id="cluster.leader")
    async def cluster_leader() -> dict[str, Any]:
        return told["get_leader_info"]({})

    @app.get("/api/cluster/visualize", operation_id="cluster.visualize")
    async def visualize(wanted: Annotated[Format, Query(alias="format")] = Format.HTML) -> Response:
        status, leader = told["get_cluster_status"]({}), told["get_leader_info"]({})
        if wanted is Format.JSON:
            return JSONResponse({"status": status, "leader": leader})
        if wanted is Format.MARKDOWN:
            return Response(as_markdown(status, leader), media_type="text/markdown")
        return Response(as_html(status, leader), media_type="text/html")

    @app.post("/api/cluster/node/{node_id}/disable", operation_id="cluster.disable")
    async def disable(node_id: str, reason: Annotated[str, Query(max_length=MAX_REASON)] = "") -> dict[str, Any]:
        """It hands over the leadership and takes no work. Answered when it does not lead any more."""
        return await cluster.disable(node_id, reason)

    @app.post("/api/cluster/node/{node_id}/enable", operation_id="cluster.enable")
    async def enable(node_id: str) -> dict[str, Any]:
        return await cluster.enable(node_id)

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, Disabled):
            return JSONResponse({"error": str(error)}, 503, {"Retry-After": "1"})
        return JSONResponse({"error": str(error)}, 404 if isinstance(error, UnknownNode) else 409)

    for kind in (UnknownNode, LastNode, Disabled):
        app.add_exception_handler(kind, refused)


def answers(coordinator: Coordinator) -> dict[str, Answer]:
    """Return what answers questions about the cluster, over REST and the WebSocket alike."""
    mirror = coordinator.pool.mirror

    def health(asked: Mapping[str, Any]) -> dict[str, Any]:
        metrics = _metrics(asked.get("metrics"))
        nodes = [show_health(node, metrics) for node in nodes_of(mirror)]
        return {"nodes": nodes, "timestamp": when(coordinator.now())}

    return {
        "get_cluster_status": lambda _: coordinator.cluster_status(),
        "get_leader_info": lambda _: show_leader(mirror, coordinator.now()),
        "get_cluster_health": health,
    }


def _metrics(asked: object) -> tuple[str, ...]:
    if asked is None:
        return SHOWN
    known = SHORT_NAMES | {name: name for name in SHOWN}
    if not isinstance(asked, list) or not all(isinstance(name, str) and name in known for name in asked):
        raise SettingsError(f"metrics: expected some of {', '.join(SHORT_NAMES)}, got {str(asked)[:80]!r}")
    return tuple(dict.fromkeys(known[name] for name in asked))


def _node_key(field: str, node: Mapping[str, Any]) -> Key:
    return str(node[field])
