"""Workers' certificates: what only workers ask for needs one, where the farm has an authority for them.

Rule: which requests are workers' alone is one list, which a test compares with the routes that there are. A browser and a
command line come to the same port without a certificate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtf_lightning.farm.server.wire.refusing import refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

IN_STATE = "client_certificate"
"""Key of a scope's `state` under which the common name of the connection's certificate stands."""
REASON = (
    "a worker of this farm needs a certificate of its authority: give `dtf farm worker` --client-cert FILE and "
    "--client-key FILE (`dtf farm cert issue NAME --client` makes them)"
)
_WORKERS = {
    "GET": r"/api/workers/[^/]+/tasks|/api/tasks/[^/]+/stdin",
    "POST": r"/api/register|/api/health|/api/(sub)?tasks/[^/]+/(complete|fail)|/api/tasks/[^/]+/(logs|artifacts|secrets|token)",
    "PUT": r"/api/tasks/[^/]+/artifacts",
    "WEBSOCKET": r"/ws/worker",
}


class ClientCertificates:
    """An ASGI application before another: refuses workers' requests on connections without a certificate."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        method = "WEBSOCKET" if scope["type"] == "websocket" else scope.get("method", "")
        if is_of_workers(method, scope.get("path", "")) and not scope.get("state", {}).get(IN_STATE):
            await refuse(403, REASON, scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_of_workers(method: str, path: str) -> bool:
    """Whether only workers ask for this. `method`: HTTP's, or `WEBSOCKET`."""
    return method in _WORKERS and re.fullmatch(_WORKERS[method], path) is not None


def common_name(certificate: Mapping[str, Any]) -> str:
    """Return whom a certificate is for, as `ssl` gives it: its common name, or where it has none `?`."""
    for parts in certificate.get("subject", ()):
        for name, value in parts:
            if name == "commonName":
                return str(value)
    return "?"
