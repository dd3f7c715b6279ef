"""How uvicorn serves a coordinator.

Rules that this file guards:
- A request's scope says which certificate its connection has shown: `client_certificate` of its `state`.
- Addresses are those of connections: headers that a proxy might have written may be anybody's.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dtf_lightning.farm.server.wire.client_certificates import IN_STATE, common_name

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from dtf_lightning.farm.server.wire.reach import Wire

MAX_MESSAGE = 16 * 1024 * 1024
SHUTDOWN_TIMEOUT = 5
"""Seconds for requests that are under way when the coordinator ends."""
KEEP_ALIVE = 60
"""Seconds for which a connection is kept without a request."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says something.

    It takes a WebSocket's handshake that was refused with a reason for one that was forgotten: a line for each, by which a
    stranger could fill a disk.
    """
    return "without completing handshake" not in record.getMessage()


class Connection(H11Protocol):
    """A client's connection, until it becomes a WebSocket's."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        told = transport.get_extra_info("peercert")
        if told:
            self.app_state = {**self.app_state, IN_STATE: common_name(told)}


def server_config(app: ASGIApp, wire: Wire) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    config = uvicorn.Config(
        app,
        http=Connection,
        lifespan="off",
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # heartbeats are the application's own
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        timeout_keep_alive=KEEP_ALIVE,
        proxy_headers=False,
        server_header=False,
    )
    config.load()
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config.ssl = wire.context  # uvicorn's own options know nothing of certificates that change
    return config
