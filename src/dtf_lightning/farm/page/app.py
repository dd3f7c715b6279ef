"""The page as an ASGI application: its addresses, and what each answers.

| address | what |
|---|---|
| `/`, `/tasks`, `/tasks/ID`, `/plans/ID`, `/fleet`, `/cluster`, `/grid`, `/test`, `/compare`, `/trainings`, `/trainings/ID` | a screen: \
HTML, a stream of events for who accepts those; its data with `format=json`, and with `table=NAME` one of its tables (`json`, `csv`, \
`parquet`), with `chart=NAME` one of its drawings (`svg`), all of it as one file (`html`) |
| `/tasks/ID/output`, `/tasks/ID/search` | some of what a task has written, where a text stands in it |
| POST `/do/ACTION?name=NAME` | an action, by `actions.py`; answers with a sentence |
| `/sign-in`, POST `/sign-out`, `/static/FILE` | |

Who may ask is `server/access.py`'s business. Rule: every answer bears a Content-Security-Policy under which nothing is
loaded, run or asked from elsewhere than this coordinator, and the others of its farm after its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import DtfError, SettingsError, StoreError
from dtf_lightning.farm.page.actions import act
from dtf_lightning.farm.page.live import MAX_READERS, EventStream, LiveViews, Shown
from dtf_lightning.farm.page.output import part_after, part_around, part_before, search
from dtf_lightning.farm.page.render import Renderer, as_json
from dtf_lightning.farm.page.saving.tables import FORMATS, ROWS, table_of, write_table
from dtf_lightning.farm.page.screens import Screens, View
from dtf_lightning.farm.page.signing_in import SigningIn
from dtf_lightning.farm.page.trainings import TrainingScreens
from dtf_lightning.farm.page.verdicts.screens import VerdictScreens
from dtf_lightning.farm.security.names import LOOPBACK, bracketed
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.tasks import UnknownTask

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.doors.doors import Doors

STATIC = Path(__file__).parent / "static"
_OF_THE_ANSWER = ("format", "table", "chart", "seen")
"""Parts of a query that say how a view is answered, not what is shown."""
Look = Callable[[], Awaitable[View]]


class Page:
    """The page and the API of a coordinator, each at its addresses. `close` lets those go who look at it."""

    def __init__(self, api: ASGIApp, coordinator: Coordinator, token: str, folder: Path, doors: Doors) -> None:
        self._api = api
        self._coordinator = coordinator
        self._screens = Screens(coordinator)
        self._renderer = Renderer()
        self._live = LiveViews(coordinator.pool, SystemClock())
        signing_in = SigningIn(token, doors.authenticator, folder / "used-links", self._renderer, coordinator.now)
        screens = self._screens
        self._app = Starlette(
            routes=[
                Route("/", self._screen(lambda request: screens.now(_query(request)))),
                Route("/tasks", self._screen(lambda request: screens.tasks(_query(request), _rows(request)))),
                Route("/tasks/{task}", self._screen(lambda request: screens.task(request.path_params["task"]))),
                Route("/tasks/{task}/output", self._output),
                Route("/tasks/{task}/search", self._search),
                Route(
                    "/plans/{plan:path}",
                    self._screen(
                        lambda request: screens.plan(request.path_params["plan"], _query(request), _rows(request))
                    ),
                ),
                Route("/fleet", self._screen(lambda request: screens.fleet(_query(request)))),
                Route("/cluster", self._screen(lambda request: screens.cluster(_query(request)))),
                *self._more_screens(coordinator),
                Route("/do/{action}", self._act, methods=["POST"]),
                *signing_in.routes(),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            exception_handlers={DtfError: self._problem, 404: self._nothing_there},
        )
        doors.permits.stand_before(self._app.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" or scope["path"].startswith("/api/") or scope["path"] == "/openapi.json":
            await self._api(scope, receive, send)
            return

        async def secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *self._headers(scope)]}
            await send(message)

        await self._app(scope, receive, secured)

    def close(self) -> None:
        """End all streams of events."""
        self._live.close()

    # --- screens -----------------------------------------------------------------------------------------------------

    def _more_screens(self, coordinator: Coordinator) -> list[Route]:
        verdicts, trainings = VerdictScreens(coordinator), TrainingScreens(coordinator)
        return [
            Route("/grid", self._screen(lambda request: verdicts.grid(_query(request), _rows(request)))),
            Route("/test", self._screen(lambda request: verdicts.test(_query(request), _rows(request)))),
            Route("/compare", self._screen(lambda request: verdicts.compare(_query(request)))),
            Route("/trainings", self._screen(lambda request: trainings.trainings(_query(request)))),
            Route("/trainings/{task}", self._screen(lambda request: trainings.training(request.path_params["task"]))),
        ]

    def _screen(self, look: Callable[[Request], Awaitable[View]]) -> Callable[[Request], Awaitable[Any]]:
        async def answer(request: Request) -> Any:
            query = _query(request)
            if "text/event-stream" in request.headers.get("accept", ""):
                return self._stream(request, lambda: look(request), query)
            view = await look(request)
            if form := request.query_params.get("format"):
                return self._saved(request, view, query, form)
            shown = self._shown(view, query)
            address = urlunsplit(("", "", request.url.path, request.url.query, ""))
            return HTMLResponse(self._renderer.page(view, query, shown.html, seen=shown.id, address=address))

        return answer

    def _saved(self, request: Request, view: View, query: dict[str, str], form: str) -> Response:
        """A view in another form: its data, one of its tables or drawings, or itself as one file."""
        table, chart = request.query_params.get("table", ""), request.query_params.get("chart", "")
        if form == "json" and not table:
            return Response(as_json(view), media_type="application/json")
        if form in FORMATS:
            rows = table_of(view.screen, view.data, table)
            return _file(write_table(rows, form), FORMATS[form], f"{table or view.screen}.{form}")
        if form == "svg":
            return _file(self._renderer.drawing(view, query, chart).encode(), "image/svg+xml", f"{chart}.svg")
        if form != "html":
            raise SettingsError(f"format: {form[:80]!r} is none; expected html, json, csv, parquet or svg")
        live = self._renderer.live(
            View(screen=view.screen, title=view.title, data={**view.data, "addresses": []}), query
        )
        origin, path = f"{request.url.scheme}://{request.url.netloc}", request.url.path
        at = (when(self._coordinator.now()) or "")[:19].replace("T", " ")
        page = self._renderer.file(view, query, live, origin=origin, path=path, at=at)
        return _file(page.encode("utf-8", "replace"), "text/html; charset=utf-8", f"{view.screen}.html")

    def _stream(self, request: Request, look: Look, query: dict[str, str]) -> Any:
        if self._live.num_readers >= MAX_READERS:
            return PlainTextResponse(
                f"{MAX_READERS} pages of this coordinator are open, which is all that it keeps up to date", 503
            )

        async def render() -> Shown:
            try:
                return self._shown(await look(), query)
            except DtfError as error:
                view = View(screen="problem", title="", data={"status": _status(error), "text": str(error)})
                return self._shown(view, query)

        name = f"{request.url.path}?{sorted(query.items())}"
        seen = request.headers.get("last-event-id") or request.query_params.get("seen", "")
        return EventStream(self._live.follow(name, render, seen))

    def _shown(self, view: View, query: dict[str, str]) -> Shown:
        html = self._renderer.live(
            View(screen=view.screen, title=view.title, data=view.data | {"addresses": self._screens.addresses()}), query
        )
        return Shown.of(self._coordinator.pool.mirror.revision, html)

    # --- output ------------------------------------------------------------------------------------------------------

    async def _output(self, request: Request) -> Response:
        """`where`: `after`, `before` or `around` the offset `at`; -1 is the end. `mark`: a text that is marked."""
        attempt, at, mark = _integer(request, "attempt"), _integer(request, "at"), request.query_params.get("mark", "")
        files, task = self._coordinator.tasks.files, request.path_params["task"]
        size = await asyncio.to_thread(files.log_size, task, attempt)
        at = size if at < 0 else at

        def read(offset: int, length: int) -> bytes:
            return files.read_log(task, attempt, offset, length)

        match request.query_params.get("where", "after"):
            case "before":
                part = await asyncio.to_thread(part_before, read, min(at, size), mark)
            case "around":
                part = await asyncio.to_thread(part_around, read, size, at, mark)
            case _:
                part = await asyncio.to_thread(part_after, read, size, at, mark)
        return JSONResponse({"start": part.start, "end": part.end, "size": size, "html": part.html})

    async def _search(self, request: Request) -> Response:
        """`at`: the offset from which on is searched; `searched` in the answer is the next one's."""
        attempt, at, text = _integer(request, "attempt"), _integer(request, "at"), request.query_params.get("text", "")
        if not text:
            raise SettingsError("text: there is nothing to search for")
        files, task = self._coordinator.tasks.files, request.path_params["task"]
        size = await asyncio.to_thread(files.log_size, task, attempt)
        found = await asyncio.to_thread(
            search, lambda offset, length: files.read_log(task, attempt, offset, length), text, at, size
        )
        return JSONResponse({"at": found.at, "searched": found.searched, "size": size})

    # --- actions -----------------------------------------------------------------------------------------------------

    async def _act(self, request: Request) -> Response:
        action, name = request.path_params["action"], request.query_params.get("name", "")
        return PlainTextResponse(await act(self._coordinator, action, name))

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _problem(self, request: Request, error: Exception) -> Response:
        return self._said(request, _status(error), str(error))

    async def _nothing_there(self, request: Request, _: Exception) -> Response:
        return self._said(request, 404, f"there is no screen {request.url.path}")

    def _said(self, request: Request, status: int, text: str) -> Response:
        if request.query_params.get("format") == "json":
            return JSONResponse({"error": text}, status)
        if "text/html" not in request.headers.get("accept", "") or "hx-request" in request.headers:
            return PlainTextResponse(text, status)
        return HTMLResponse(self._renderer.problem(status, text), status)

    def _headers(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        policy = security_policy(host, self._screens.addresses())
        static = scope["path"].startswith("/static/")
        return [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            *([(b"cache-control", b"no-cache")] if static else [(b"cache-control", b"no-store"), (b"vary", b"accept")]),
        ]


def security_policy(host: str, addresses: list[str]) -> str:
    """Return the policy of a page that a browser has reached under `host`.

    It may ask the other coordinators whether they live: at their addresses, and where these mean this machine, under the
    name that the browser has used, since a cookie is of a name and not of a port.
    """
    others = sorted({other for address in addresses if (other := address_from(host, address))})
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            " ".join(("connect-src 'self'", *others)),
            "form-action 'self'",
            "frame-ancestors 'none'",
            "base-uri 'none'",
        )
    )


def address_from(host: str, address: str) -> str:
    """Return a coordinator's address as a browser reaches it that has reached another as `host`; "" for none."""
    name, there = urlsplit(f"//{host}").hostname, urlsplit(address)
    if name is None or there.hostname is None:
        return ""
    if there.hostname not in LOOPBACK or there.port is None:
        return f"{there.scheme}://{there.netloc}"
    return f"{there.scheme}://{bracketed(name)}:{there.port}"


def _query(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.query_params.items() if value and name not in _OF_THE_ANSWER}


def _rows(request: Request) -> int | None:
    """How many rows of a list are wanted: those of a table that is saved have no pages."""
    return ROWS if request.query_params.get("format") in FORMATS and "table" in request.query_params else None


def _file(data: bytes, kind: str, name: str) -> Response:
    return Response(data, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def _integer(request: Request, name: str) -> int:
    told = request.query_params.get(name, "0")
    try:
        return int(told)
    except ValueError:
        raise SettingsError(f"{name}: {told[:80]!r} is no whole number") from None


def _status(error: Exception) -> int:
    if isinstance(error, UnknownTask):
        return 404
    if isinstance(error, SettingsError):
        return 422
    return 503 if isinstance(error, StoreError) else 500
