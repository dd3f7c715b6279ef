"""Who may talk to a coordinator: until tokens have roles, whoever has the farm's one token, on this machine.

Rules that this file guards:
- Every request carries the token, WebSockets too, as `Authorization: Bearer TOKEN`. It is compared in constant time.
- The page's own paths also take the cookie of a browser that has signed in (`sign_in.py`), the API never does. What
  changes something by that cookie must come from the very address that it goes to, with a header that a form cannot send.
- Without either, a browser may only sign in, and load what is the same for every farm.
- `Host` must be a name that this coordinator has (`security/names.py`), and `Origin`, where a browser sends one, too: a
  page of another site must not reach a farm through somebody's browser (DNS rebinding, cross-site requests).
- Every change that was asked for is appended to the audit file: when, what, by which route, with which status.
"""

from __future__ import annotations

import hmac
import json
import os
import threading
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import JSONResponse, RedirectResponse

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.security.names import hostname
from dtf_lightning.farm.sign_in import SignIn

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_HEADER = "X-DTF-Farm"
"""What the page's script sends with every change: no other site's can, and no form."""
SIGN_IN = "/sign-in"
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")


class AuditFile:
    """One JSON object for each change that was asked for. Thread-safe."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()

    def write(self, **facts: object) -> None:
        """Append one line. Raises `OSError` if the disk does not take it."""
        line = json.dumps({"time": round(self._clock.wall(), 3), **facts}) + "\n"
        with self._lock:
            os.write(self._file, line.encode())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1


class Guard:
    """An ASGI application before another, which lets through what the rules above allow.

    Args:
        serves: whether a host's name is one of this coordinator.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        audit: AuditFile,
        serves: Callable[[str], bool],
        clock: Clock | None = None,
    ) -> None:
        self._app = app
        self._serves = serves
        self._token = token.encode()
        self._audit = audit
        self._sign_in = SignIn(token)
        self._clock = clock or SystemClock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        problem = self._problem(scope, {name.decode("latin-1"): value for name, value in scope["headers"]})
        if problem is not None:
            await _refuse(problem, scope, receive, send)
            return
        if scope["type"] == "websocket" or scope["method"] not in _CHANGING or _is_output(scope["path"]):
            await self._app(scope, receive, send)
            return
        noted = False

        def note(status: int) -> None:
            nonlocal noted
            noted = True
            client = scope.get("client") or ("?", 0)
            self._audit.write(method=scope["method"], path=scope["path"], status=status, client=client[0])

        async def listen(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(message["status"])  # before the answer: who has it finds its line in the file
            await send(message)

        try:
            await self._app(scope, receive, listen)
        finally:
            if not noted:
                note(500)

    def _problem(self, scope: Scope, headers: dict[str, bytes]) -> tuple[int, str] | None:
        host = headers.get("host", b"").decode("latin-1")
        if not self._serves(hostname(f"//{host}")):
            return (
                403,
                f"the host {host!r} is not a name of this coordinator: those of its certificate are, and what it advertises",
            )
        origin = headers.get("origin")
        if origin is not None and not self._serves(hostname(origin.decode("latin-1"))):
            return 403, "a page of another site asked"
        given = headers.get("authorization", b"")
        if hmac.compare_digest(given, b"Bearer " + self._token):
            return None
        changes = scope["type"] == "http" and scope["method"] in _CHANGING
        from_itself = origin == f"{scope['scheme']}://{host}".encode("latin-1")
        if is_open(scope["path"]):
            return (403, "a page of another address asked") if changes and not from_itself else None
        if is_of_page(scope["path"]) and self._sign_in.is_session(self._cookie(headers), self._clock.wall()):
            if changes and not (from_itself and PAGE_HEADER.lower() in headers):
                return 403, f"a change must come from the farm's page: with its origin and the header {PAGE_HEADER}"
            return None
        return 401, "this farm's token is needed, as `Authorization: Bearer TOKEN`"

    def _cookie(self, headers: dict[str, bytes]) -> str:
        try:
            told = SimpleCookie(headers.get("cookie", b"").decode("latin-1"))
        except CookieError:
            return ""
        return told[self._sign_in.cookie].value if self._sign_in.cookie in told else ""


def is_of_page(path: str) -> bool:
    """Whether a path is the page's, and not of the API or a socket."""
    return not path.startswith(("/api/", "/ws")) and path not in ("/api", "/openapi.json")


def is_open(path: str) -> bool:
    """Whether a path is the same for everybody: signing in, and the page's scripts and styles."""
    return path == SIGN_IN or path.startswith("/static/")


def _is_output(path: str) -> bool:
    """Whether a request brings output of an attempt: many a second, and no decision of anybody."""
    return path.endswith("/logs")


def wants_page(scope: Scope) -> bool:
    """Whether a browser asks for something to show, and no script or program for something to read."""
    accepts = b",".join(value for name, value in scope["headers"] if name == b"accept")
    return b"text/html" in accepts


async def _refuse(problem: tuple[int, str], scope: Scope, receive: Receive, send: Send) -> None:
    status, reason = problem
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4000 + status, "reason": reason})
        return
    if status == 401 and scope["method"] == "GET" and is_of_page(scope["path"]) and wants_page(scope):
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        back = quote(scope["path"] + query, safe="/")
        await RedirectResponse(f"{SIGN_IN}?next={back}", 303)(scope, receive, send)
        return
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    response: Any = JSONResponse({"error": reason}, status, headers)
    await response(scope, receive, send)
