"""`Turnstile`: before anybody looks at a request, whether there is room for it.

Rules that this file guards:
- It knows no tokens: it learns from answers which were good, and takes little of what comes with others from one address.
- What is too much is refused with a reason, and with when it may be tried again: 413, 408, 429.
- What workers bring (output, files, results) is not counted where the token was good before: it comes as fast as tasks write.
- A stranger learns the version, and that the coordinator lives (`GET /api/health`); nothing else is answered here.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from dtf_lightning import __version__
from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.security.limits import Buckets, Caller, RateLimits, body_patience
from dtf_lightning.farm.server.access import is_open
from dtf_lightning.farm.server.wire.client_certificates import ClientCertificates, is_of_workers
from dtf_lightning.farm.server.wire.refusing import refuse
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dtf_lightning.farm.server.wire.reach import Wire

HEALTH = "/api/health"
MEBIBYTE = 1 << 20
BODY_GRACE, BODY_RATE = 30.0, 1024.0
"""Seconds that every body has, and bytes a second that it must have beyond them."""
DRAIN = 10.0
"""Seconds for which what is too large is still taken, and thrown away."""
_REFUSALS = (401, 403, 303)
"""Of tokens, and of what they may not do; a browser is sent to where it signs in."""
_CLOSINGS = (4401, 4403)
"""The same of a WebSocket."""
SLACK = 1 << 16
"""Bytes beyond a file's own that its request may have."""


def turnstile(app: ASGIApp, wire: Wire, settings: CoordinatorSettings) -> ASGIApp:
    """Return an application behind what is asked of every request before it is known whose it is."""
    return Turnstile(ClientCertificates(app) if wire.asks_for_certificates else app, settings, version=__version__)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The largest bodies of requests, in bytes."""

    request: int
    source: int
    artifact: int

    @classmethod
    def of(cls, settings: CoordinatorSettings) -> Sizes:
        """Return those of a coordinator's settings."""
        limits = settings.limits
        return cls(
            request=int(limits.request_size * MEBIBYTE),
            source=int(limits.source_size * MEBIBYTE) + SLACK,
            artifact=int(settings.artifacts.max_size * MEBIBYTE) + SLACK,
        )

    def of_request(self, method: str, path: str) -> int:
        """Return that of one."""
        if method == "PUT" and path.startswith("/api/sources/"):
            return self.source
        if method == "PUT" and path.startswith("/api/tasks/") and path.endswith("/artifacts"):
            return max(self.artifact, self.request)
        return self.request


class Turnstile:
    """An ASGI application before another.

    Args:
        version: that strangers are told.
    """

    def __init__(
        self, app: ASGIApp, settings: CoordinatorSettings, *, version: str, clock: Clock | None = None
    ) -> None:
        limits = settings.limits
        self._app = app
        self._version = version
        self._clock = clock or SystemClock()
        self._sizes = Sizes.of(settings)
        self._rates = RateLimits(
            known=Buckets(limits.requests_per_second, limits.burst),
            strangers=Buckets(limits.strangers_per_second, limits.strangers_burst),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        method = scope.get("method", "WEBSOCKET")
        caller = Caller.of(
            (scope.get("client") or ("?", 0))[0], headers.get(b"authorization", b"") or headers.get(b"cookie", b"")
        )
        if wait := self._wait(caller, method, scope["path"]):
            reason = f"too many requests from here: {_rate_words(wait)}"
            await refuse(429, reason, scope, receive, send, {"retry-after": str(math.ceil(wait))}, retry_after=wait)
            return
        if scope["path"] == HEALTH and method in ("GET", "HEAD"):
            await JSONResponse({"status": "ok", "version": self._version})(scope, receive, send)
            return
        if scope["type"] == "http":
            limit = self._sizes.of_request(method, scope["path"])
            if _length(headers) > limit:
                await _drain(receive)
                await refuse(413, _too_large(limit), scope, receive, send, {"connection": "close"})
                return
            receive = _Body(receive, limit, self._clock).receive
        await self._app(scope, receive, send if is_open(scope["path"]) else self._learning(caller, send))

    def _wait(self, caller: Caller, method: str, path: str) -> float:
        if is_of_workers(method, path) and self._rates.is_good(caller):
            return 0.0
        return self._rates.admit(caller, self._clock.monotonic())

    def _learning(self, caller: Caller, send: Send) -> Callable[[Message], Awaitable[None]]:
        """Learn from the answer to a request whose token is looked at whether that was good."""

        async def listen(message: Any) -> None:
            if message["type"] == "websocket.accept":
                self._rates.answered(caller, good=True)
            elif message["type"] == "websocket.close" and message.get("code") in _CLOSINGS:
                self._rates.answered(caller, good=False)
            elif message["type"].endswith("http.response.start"):
                status = message["status"]
                if status in _REFUSALS or status < 300:
                    self._rates.answered(caller, good=status < 300)
            await send(message)

        return listen


class _Body:
    """A request's body as it comes, as long as it is not too large and not too slow."""

    def __init__(self, receive: Receive, limit: int, clock: Clock) -> None:
        self._receive = receive
        self._limit = limit
        self._clock = clock
        self._received = 0
        self._waited = 0.0
        self._whole = False

    async def receive(self) -> Message:
        """Return the next part. Raises `HTTPException`, which the applications behind answer with."""
        if self._whole:
            return await self._receive()  # the client's leaving
        patience = body_patience(self._received, self._waited, grace=BODY_GRACE, rate=BODY_RATE)
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(max(patience, 0.0)):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(
                408,
                f"the body of the request came too slowly: {self._received} bytes in {BODY_GRACE + self._waited:.0f} s; "
                f"at least {BODY_RATE:.0f} bytes a second are expected",
                {"Connection": "close"},
            ) from None
        self._waited += self._clock.monotonic() - began
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._received > self._limit:
                if not self._whole:
                    await _drain(self._receive)
                raise HTTPException(413, _too_large(self._limit), {"Connection": "close"})
        return message


async def _drain(receive: Receive) -> None:
    """Take the rest of a body, for a while: a client that still sends would find its connection reset, and no reason."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass


def _length(headers: dict[bytes, bytes]) -> int:
    told = headers.get(b"content-length", b"0")
    return int(told) if told.isdigit() else 0


def _too_large(limit: int) -> str:
    return (
        f"the body of the request is larger than the {limit / MEBIBYTE:.0f} MiB that this farm takes here: send less at once, "
        "or raise `limits` in coordinator.yaml"
    )


def _rate_words(wait: float) -> str:
    return f"try again in {wait:.1f} s; `limits` in coordinator.yaml says how many there may be"
