"""The door of a coordinator: it finds out who asks, and writes down what was asked for.

Rules that this file guards:
- Every request carries a token, WebSockets too, as `Authorization: Bearer TOKEN`: the farm's own, or one that the farm has
  signed (`doors/authenticator.py`). What its role may do is looked at behind this door (`doors/permits.py`).
- The page's own paths also take the cookie of a browser that has signed in (`sign_in.py`), the API never does. What
  changes something by that cookie must come from the very address that it goes to, with a header that a form cannot send.
- Without either, a browser may only sign in, and load what is the same for every farm.
- `Host` must be a name that this coordinator has (`security/names.py`), and `Origin`, where a browser sends one, too: a
  page of another site must not reach a farm through somebody's browser (DNS rebinding, cross-site requests).
- Every change that was asked for is appended to the audit file: when, who, what, by which route, with which status. So is
  what was refused, as far as `security/refusals.py` lets it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import RedirectResponse

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.security.audit import AuditFile
from dtf_lightning.farm.security.identity import IN_SCOPE, OWNER, Forbidden, Identity, Unauthorised
from dtf_lightning.farm.security.names import hostname
from dtf_lightning.farm.security.tokens import is_signed
from dtf_lightning.farm.server.doors.authenticator import Authenticator
from dtf_lightning.farm.server.wire.refusing import refuse
from dtf_lightning.farm.sign_in import SignIn

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_HEADER = "X-DTF-Farm"
"""What the page's script sends with every change: no other site's can, and no form."""
SIGN_IN = "/sign-in"
MAX_PATH = 500
"""Characters of a request's path that the audit file keeps."""
_CHANGING = ("POST", "PUT", "PATCH", "DELETE")


class Guard:
    """An ASGI application before another, which lets through what the rules above allow.

    Args:
        token: the farm's own.
        serves: whether a host's name is one of this coordinator.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str,
        authenticator: Authenticator,
        audit: AuditFile,
        serves: Callable[[str], bool],
        clock: Clock | None = None,
    ) -> None:
        self._app = app
        self._serves = serves
        self._authenticator = authenticator
        self._audit = audit
        self._sign_in = SignIn(token)
        self._clock = clock or SystemClock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            identity = self._identify(scope, {name.decode("latin-1"): value for name, value in scope["headers"]})
        except (Unauthorised, Forbidden) as error:
            status = 403 if isinstance(error, Forbidden) else 401
            self._audit.refused(status, **_facts(scope), reason=str(error))
            await _refuse(status, str(error), scope, receive, send)
            return
        if identity is not None:
            scope[IN_SCOPE] = identity
        serve = self._serve_socket if scope["type"] == "websocket" else self._serve_request
        await serve(identity, scope, receive, send)

    async def _serve_socket(self, identity: Identity | None, scope: Scope, receive: Receive, send: Send) -> None:
        async def listen(message: Message) -> None:
            if message["type"] == "websocket.http.response.start" and message["status"] in (401, 403):
                self._audit.refused(message["status"], **_facts(scope, identity))
            await send(message)

        async def close(reason: str) -> None:
            self._audit.refused(401, **_facts(scope, identity), reason=reason)
            await send({"type": "websocket.close", "code": 4401, "reason": reason})

        assert identity is not None
        with self._authenticator.connected(identity, close):
            await self._app(scope, receive, listen)

    async def _serve_request(self, identity: Identity | None, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send, lambda status: self._note(scope, identity, status))
        with contextlib.ExitStack() as stack:
            if identity not in (None, OWNER):
                stack.enter_context(self._authenticator.connected(identity, answer.end))
            try:
                await self._app(scope, receive, answer.send)
            finally:
                if not answer.begun:
                    self._note(scope, identity, 500)

    def _note(self, scope: Scope, identity: Identity | None, status: int) -> None:
        if status in (401, 403):
            self._audit.refused(status, **_facts(scope, identity))
        elif scope["method"] in _CHANGING and not _is_output(scope["path"]):
            self._audit.write(status=status, **_facts(scope, identity))

    def _identify(self, scope: Scope, headers: dict[str, bytes]) -> Identity | None:
        """Return who asks; `None` for what is the same for everybody. Raises `Unauthorised` and `Forbidden`."""
        host = headers.get("host", b"").decode("latin-1")
        if not self._serves(hostname(f"//{host}")):
            raise Forbidden(
                f"the host {host!r} is not a name of this coordinator: those of its certificate are, and what it advertises"
            )
        origin = headers.get("origin")
        if origin is not None and not self._serves(hostname(origin.decode("latin-1"))):
            raise Forbidden("a page of another site asked")
        try:
            return self._authenticator.identify(headers.get("authorization", b""))
        except Unauthorised as error:
            problem = error
        changes = scope["type"] == "http" and scope["method"] in _CHANGING
        from_itself = origin == f"{scope['scheme']}://{host}".encode("latin-1")
        if is_open(scope["path"]) and scope["type"] == "http":
            if changes and not from_itself:
                raise Forbidden("a page of another address asked")
            return None
        signed_in = self._signed_in(self._cookie(headers)) if is_of_page(scope["path"]) else None
        if signed_in is None:
            raise problem
        if changes and not (from_itself and PAGE_HEADER.lower() in headers):
            raise Forbidden(f"a change must come from the farm's page: with its origin and the header {PAGE_HEADER}")
        return signed_in

    def _signed_in(self, cookie: str) -> Identity | None:
        """Return whose browser it is, by its cookie; `None` if nobody has signed in."""
        if is_signed(cookie) and not self._sign_in.is_session(cookie, self._clock.wall()):
            try:
                return self._authenticator.read(cookie)
            except Unauthorised:
                return None
        return OWNER if self._sign_in.is_session(cookie, self._clock.wall()) else None

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


class _Answer:
    """The answer to a request: its status is told before its head is sent, and it can be ended from outside."""

    def __init__(self, send: Send, note: Callable[[int], None]) -> None:
        self._send = send
        self._note = note
        self.begun = False
        self._ended = False

    async def send(self, message: Message) -> None:
        """Send a part of it, unless it was ended."""
        if message["type"] == "http.response.start":
            self.begun = True
            self._note(message["status"])  # before the answer: who has it finds its line in the file
        if not self._ended:
            await self._send(message)

    async def end(self, _: str) -> None:
        """Send nothing more of a stream, which has no place for a reason."""
        if self.begun:
            self._ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _facts(scope: Scope, identity: Identity | None = None) -> dict[str, Any]:
    """What the audit file says of a request."""
    client = scope.get("client") or ("?", 0)
    who = {} if identity is None else identity.shown()
    return {"method": scope.get("method", "WEBSOCKET"), "path": scope["path"][:MAX_PATH], "client": client[0], **who}


async def _refuse(status: int, reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    reads = scope["type"] == "http" and scope["method"] == "GET"
    if status == 401 and reads and is_of_page(scope["path"]) and wants_page(scope):
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        back = quote(scope["path"] + query, safe="/")
        await RedirectResponse(f"{SIGN_IN}?next={back}", 303)(scope, receive, send)
        return
    await refuse(status, reason, scope, receive, send)
