"""How uvicorn serves a coordinator.

Rules that this file guards:
- A request's scope says which certificate its connection has shown: `client_certificate` of its `state`.
- Addresses are those of connections: headers that a proxy might have written may be anybody's.
- No client holds a connection by saying nothing, by saying the head of a request too slowly, or by not taking an answer; and
  no address holds all of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from dtf_lightning.farm.security.limits import network_of
from dtf_lightning.farm.server.wire.client_certificates import IN_STATE, common_name
from dtf_lightning.farm.settings.coordinator import LimitSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from dtf_lightning.farm.server.wire.reach import Wire

MAX_MESSAGE = 16 * 1024 * 1024
SHUTDOWN_TIMEOUT = 5
"""Seconds for requests that are under way when the coordinator ends."""
HEAD_TIMEOUT = 20.0
"""Seconds for the head of a request to come, from a connection's beginning or from its first byte."""
TAKE_TIMEOUT = 60.0
"""Seconds for which a client may take nothing of what is sent to it."""
FILES_KEPT = 256
"""Of the files that a process may have open, for all else than connections."""
MESSAGES_AHEAD, LONG_MESSAGE = 8, 64 * 1024
"""Messages of a WebSocket that may wait to be taken, and bytes of one behind which nothing more is read until it is taken."""
KEEP_ALIVE = 60
"""Seconds for which a connection is kept without a request."""


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a line of uvicorn's log says something.

    It takes a WebSocket's handshake that was refused with a reason for one that was forgotten: a line for each, by which a
    stranger could fill a disk.
    """
    return "without completing handshake" not in record.getMessage()


def _said(status: str, reason: str, *headers: str) -> bytes:
    body = json.dumps({"error": reason})
    lines = (
        f"HTTP/1.1 {status}", "Connection: close", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers
    )  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


_FULL = _said(
    "503 Service Unavailable",
    "this coordinator has as many connections as it takes, or as it takes from one address: `limits` in coordinator.yaml",
    "Retry-After: 1",
)
_LATE = _said("408 Request Timeout", f"the head of a request did not come within {HEAD_TIMEOUT:.0f} s")


class ConnectionCounter:
    """Counts connections from their beginning to their end, WebSockets too.

    Args:
        total: how many there may be.
        of_address: how many of them of one address.
    """

    def __init__(self, *, total: int, of_address: int) -> None:
        self._total = total
        self._of_address = of_address
        self._open: dict[object, str] = {}
        self._counts: Counter[str] = Counter()

    def add(self, connection: object, address: str) -> bool:
        """Count a connection; whether it may be."""
        network = network_of(address)
        if len(self._open) >= self._total or self._counts[network] >= self._of_address:
            return False
        self._open[connection] = network
        self._counts[network] += 1
        return True

    def remove(self, connection: object) -> None:
        """A connection has ended. Idempotent."""
        network = self._open.pop(connection, None)
        if network is not None:
            self._counts[network] -= 1
            if not self._counts[network]:
                del self._counts[network]


class _Alarm:
    """Calls a function unless it is put off before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, then: Callable[[], None]) -> None:
        self._loop, self._seconds, self._then = loop, seconds, then
        self._handle: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """From now on; one that is set stays as it is."""
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._ring)

    def off(self) -> None:
        """Idempotent."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        self._then()


class Connection(H11Protocol):
    """A client's connection, until it becomes a WebSocket's.

    Args:
        counter: of all connections of this coordinator.
    """

    def __init__(self, *arguments: Any, counter: ConnectionCounter, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._counter = counter
        self._head = _Alarm(self.loop, HEAD_TIMEOUT, self._head_is_late)
        self._taking = _Alarm(self.loop, TAKE_TIMEOUT, self._nothing_is_taken)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        told = transport.get_extra_info("peercert")
        if told:
            self.app_state = {**self.app_state, IN_STATE: common_name(told)}
        if self._counter.add(transport, self.client[0] if self.client else ""):
            self._head.set()
        else:
            transport.write(_FULL)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        upgraded = self.transport.get_protocol() is not self
        cycle: RequestResponseCycle | None = self.cycle
        if upgraded or (cycle is not None and not cycle.response_complete):
            self._head.off()
        elif self.timeout_keep_alive_task is None:
            self._head.set()  # a part of the next one has come

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._head.off()
        self._taking.off()
        self._counter.remove(self.transport)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio."""
        super().pause_writing()
        self._taking.set()

    def resume_writing(self) -> None:
        """See asyncio."""
        super().resume_writing()
        self._taking.off()

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()

    def _nothing_is_taken(self) -> None:
        self.transport.abort()  # `close` would wait until all is taken


class Socket(WebSocketsSansIOProtocol):
    """A WebSocket.

    Args:
        counter: of all connections of this coordinator.
    """

    def __init__(self, *arguments: Any, counter: ConnectionCounter, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._counter = counter

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._counter.remove(self.transport)
        super().connection_lost(exc)

    def send_receive_event_to_app(self) -> None:
        """See uvicorn, which stops reading after every message until that is taken: two changes of the selector for each.

        This one stops when several wait, or one that is long.
        """
        reads, self.read_paused = not self.read_paused, True
        size = sum(map(len, self.frames))
        super().send_receive_event_to_app()
        if reads:
            self.read_paused = not self.close_sent and (self.queue.qsize() >= MESSAGES_AHEAD or size > LONG_MESSAGE)
            if self.read_paused:
                self.transport.pause_reading()


def connections_allowed(wanted: int, files: int) -> int:
    """Return how many connections a process may have that wants so many, and may have so many files (-1: any number)."""
    return wanted if files < 0 else max(min(wanted, files - FILES_KEPT), 1)


def server_config(app: ASGIApp, wire: Wire, limits: LimitSettings) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    counter = ConnectionCounter(
        total=connections_allowed(limits.connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        of_address=limits.connections_per_address,
    )
    config = uvicorn.Config(
        app,
        http="h11",
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
    config.http_protocol_class = partial(Connection, counter=counter)  # type: ignore[assignment]
    config.ws_protocol_class = partial(Socket, counter=counter)  # type: ignore[assignment]
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    config.ssl = wire.context  # uvicorn's own options know nothing of certificates that change
    return config
