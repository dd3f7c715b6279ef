"""Signing in: a browser gives a token once, or a link that `dtf farm up` prints, and gets a cookie.

Rule: the cookie is for this page alone (HttpOnly, SameSite=Strict, over TLS Secure), and is given only to who had a token that may see the
page, or a link that nobody had used. Of a signed token the cookie is that token: it ends with it, and by its revocation.
Where a browser goes on to is always of this farm.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from dtf_lightning.farm.security.identity import Unauthorised
from dtf_lightning.farm.security.permissions import reason_against
from dtf_lightning.farm.security.tokens import is_signed
from dtf_lightning.farm.sign_in import SESSION_SECONDS, SignIn, UsedLinks

if TYPE_CHECKING:
    from starlette.requests import Request

    from dtf_lightning.farm.page.render import Renderer
    from dtf_lightning.farm.server.doors.authenticator import Authenticator

MAX_FORM = 10_000
"""Bytes of what is sent to sign in."""


class SigningIn:
    """The page's addresses `/sign-in` and `/sign-out`.

    Args:
        used: folder that remembers which links were used, shared by all coordinators.
        now: returns seconds since the epoch.
    """

    def __init__(
        self, token: str, authenticator: Authenticator, used: Path, renderer: Renderer, now: Callable[[], float]
    ) -> None:
        self._authenticator = authenticator
        self._token = token.encode()
        self._sign_in = SignIn(token)
        self._used = UsedLinks(used)
        self._renderer = renderer
        self._now = now

    def routes(self) -> list[Route]:
        """The addresses."""
        return [
            Route("/sign-in", self._ask, methods=["GET"]),
            Route("/sign-in", self._take, methods=["POST"]),
            Route("/sign-out", self._sign_out, methods=["POST"]),
        ]

    async def _ask(self, request: Request) -> Response:
        """Show the form, or take the link's code."""
        back = way_back(request.query_params.get("next", ""))
        code, now = request.query_params.get("code", ""), self._now()
        if not code:
            return HTMLResponse(self._renderer.sign_in(back=back))
        name = self._sign_in.link_name(code, now)
        if name is None or not await asyncio.to_thread(self._used.use, name, now):
            problem = (
                "This link was used before, or is older than ten minutes: give the token, or let a new link be made."
            )
            return HTMLResponse(self._renderer.sign_in(back=back, problem=problem), 403)
        return self._signed_in(request, back)

    async def _take(self, request: Request) -> Response:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM:
                return HTMLResponse(self._renderer.sign_in(back="/", problem="That is too long for a token."), 413)
        form = parse_qs(body.decode("latin-1"), max_num_fields=10)
        back = way_back(form.get("next", [""])[0])
        token = form.get("token", [""])[0].strip()
        if hmac.compare_digest(token.encode(), self._token):
            return self._signed_in(request, back)
        if not is_signed(token):
            return HTMLResponse(self._renderer.sign_in(back=back, problem="This is not the farm's token."), 403)
        try:
            identity = self._authenticator.read(token)
        except Unauthorised as error:
            return HTMLResponse(self._renderer.sign_in(back=back, problem=f"{error}."), 403)
        if reason := reason_against("dashboard.get", identity.role, limited=bool(identity.projects)):
            problem = f"The page shows the whole farm: {reason}."
            return HTMLResponse(self._renderer.sign_in(back=back, problem=problem), 403)
        seconds = min((identity.expires or 0.0) - self._now(), SESSION_SECONDS)
        return self._signed_in(request, back, token, max(seconds, 1.0))

    def _signed_in(self, request: Request, back: str, value: str = "", seconds: float = SESSION_SECONDS) -> Response:
        answer = HTMLResponse(self._renderer.signed_in(back))
        answer.set_cookie(
            self._sign_in.cookie,
            value or self._sign_in.session(self._now()),
            max_age=int(seconds),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def _sign_out(self, request: Request) -> Response:
        answer: Response = (
            Response(status_code=200, headers={"HX-Redirect": "/sign-in"})
            if "hx-request" in request.headers
            else RedirectResponse("/sign-in", 303)
        )
        secure = request.url.scheme == "https"
        answer.delete_cookie(self._sign_in.cookie, httponly=True, samesite="strict", secure=secure)
        return answer


def way_back(told: str) -> str:
    """Return a path of this farm, whatever was told: browsers take two slashes of either kind for another site."""
    good = told.startswith("/") and not told.startswith(("//", "/\\")) and told.isprintable() and "\\" not in told
    return told if good and not told.startswith("/sign-") else "/"
