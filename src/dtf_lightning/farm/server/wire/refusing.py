"""How a request is refused before anybody has looked who asks: with a reason, over a WebSocket too."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


async def refuse(
    status: int,
    reason: str,
    scope: Scope,
    receive: Receive,
    send: Send,
    headers: dict[str, str] | None = None,
    **more: object,
) -> None:
    """Answer a request, or a WebSocket's handshake, with an error: `{"error": reason}`, and what more it is to say."""
    kind = "http.response"
    if scope["type"] == "websocket":
        await receive()
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 4000 + status, "reason": reason})
            return
        kind = "websocket.http.response"
    body = json.dumps({"error": reason, **more}).encode()
    told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    await send(
        {
            "type": f"{kind}.start",
            "status": status,
            "headers": [(name.encode(), value.encode()) for name, value in told.items()],
        }
    )
    await send({"type": f"{kind}.body", "body": body})
