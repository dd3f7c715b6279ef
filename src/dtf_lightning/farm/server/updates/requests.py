"""What a client may say over its WebSocket: one JSON object a message, with a `type`. Pure.

| type | fields | answer |
|---|---|---|
| `subscribe` | `channel`, `filter`, `since`, `details` | `subscribe_response` |
| `unsubscribe` | `channel` | `unsubscribe_response` |
| `get_cluster_status`, `get_leader_info` | | `cluster_status_response`, `leader_info_response` |
| `get_cluster_health` | `metrics`: names such as `cpu` | `cluster_health_response` |
| `orchestrate_task` | `task_data`, `strategy`, and the others of `POST /api/orchestrate` | `orchestrate_task_response` |
| `get_aggregated_results` | | an error like 501: not yet |

`request_id` comes back in the answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.updates import Filter
from dtf_lightning.farm.server.updates.changes import FILTERS

MAX_VALUES = 10_000
"""Of one filter."""
MAX_SEQUENCE = 2**63 - 1

OPERATIONS = {
    "subscribe": "update.follow",
    "unsubscribe": "update.follow",
    "get_cluster_status": "cluster.status",
    "get_cluster_health": "cluster.health",
    "get_leader_info": "cluster.leader",
    "get_aggregated_results": "result.aggregate",
    "orchestrate_task": "orchestration.submit",
}
"""Type of a message -> the operation that it is."""
ANSWERS = {
    "get_cluster_status": "cluster_status_response",
    "get_cluster_health": "cluster_health_response",
    "get_leader_info": "leader_info_response",
    "get_aggregated_results": "aggregated_results",
}
"""Type of a message -> type of its answer, where that is not `TYPE_response`."""
LATER = {
    "get_aggregated_results": "aggregated results come with a later release; `POST /api/results/query` takes SQL",
}


@dataclass(frozen=True)
class ClientMessage:
    """What a client says."""

    type: str
    request_id: str | int | None
    body: dict[str, Any]

    @property
    def answer(self) -> str:
        """The type of its answer."""
        return ANSWERS.get(self.type, f"{self.type}_response")


@dataclass(frozen=True)
class Subscribe:
    """A client wants to be told of a channel."""

    channel: str
    wanted: Filter
    since: int | None
    details: bool


class Unreadable(SettingsError):
    """No message of a client."""

    def __init__(self, text: str, request_id: str | int | None = None) -> None:
        super().__init__(text)
        self.request_id = request_id


def read_client(text: str) -> ClientMessage:
    """Return the message that a text stands for. Raises `Unreadable`."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Unreadable('a message must be a JSON object with a type, such as {"type": "get_cluster_status"}')
    request_id = body.get("request_id")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None) or len(str(request_id)) > 200:
        raise Unreadable("request_id: expected a text of at most 200 characters, or a number")
    kind = body.get("type")
    if not isinstance(kind, str) or kind not in OPERATIONS:
        raise Unreadable(f"type: expected one of {', '.join(OPERATIONS)}, got {str(kind)[:80]!r}", request_id)
    return ClientMessage(kind, request_id, body)


def read_channel(message: ClientMessage) -> str:
    """Return the channel of a message. Raises `SettingsError`."""
    channel = message.body.get("channel")
    if not isinstance(channel, str) or channel not in FILTERS:
        raise SettingsError(f"channel: expected one of {', '.join(FILTERS)}, got {str(channel)[:80]!r}")
    return channel


def read_subscribe(message: ClientMessage) -> Subscribe:
    """Return what a client wants to be told of. Raises `SettingsError`."""
    channel, body = read_channel(message), message.body
    since, details = body.get("since"), body.get("details", False)
    whole = isinstance(since, int) and not isinstance(since, bool) and 0 <= since <= MAX_SEQUENCE
    if since is not None and not whole:
        raise SettingsError(f"since: expected a sequence from 0 up, got {str(since)[:80]!r}")
    if not isinstance(details, bool):
        raise SettingsError(f"details: expected true or false, got {str(details)[:80]!r}")
    return Subscribe(channel, _filter(channel, body.get("filter")), since, details)


def _filter(channel: str, told: Any) -> Filter:
    if told is None:
        return {}
    if not isinstance(told, dict):
        raise SettingsError(f'filter: expected an object such as {{"status": "running"}}, got {str(told)[:80]!r}')
    wanted = {}
    for name, value in told.items():
        if name not in FILTERS[channel]:
            raise SettingsError(
                f"filter: {str(name)[:80]!r} is nothing that {channel} tells; expected {', '.join(FILTERS[channel])}"
            )
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values) or len(values) > MAX_VALUES:
            raise SettingsError(f"filter: {name}: expected a text, or a list of at most {MAX_VALUES}")
        wanted[name] = frozenset(values)
    return wanted


def error(message: ClientMessage | None, status: int, text: str, request_id: str | int | None = None) -> dict[str, Any]:
    """Return the answer that something cannot be done. `status`: HTTP's word for it."""
    kind = "error" if message is None else message.answer
    told = request_id if message is None else message.request_id
    return {"type": kind, "request_id": told, "success": False, "status": status, "error": text, "message": text}
