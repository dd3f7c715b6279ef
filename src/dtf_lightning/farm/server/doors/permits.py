"""`Permits`: stands before every route, and lets through who may do its operation to the thing that it names.

Rules that this file guards:
- A route that has no operation lets nobody through.
- What a token may not have is refused before the route does anything; the exceptions are bodies, which routes read
  themselves: they call `refuse_projects` and `refuse_name` with what they read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute

from dtf_lightning.errors import StoreError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.values import Attempt
from dtf_lightning.farm.security.entrances import ACTIONS, OPEN_PAGES, PAGE
from dtf_lightning.farm.security.identity import Forbidden, Identity, Unauthorised, identity_of
from dtf_lightning.farm.security.ownership import (
    narrowed_query,
    refuse_attempt,
    refuse_name,
    refuse_projects,
    refuse_subtask,
)
from dtf_lightning.farm.security.permissions import PERMISSIONS, Reach, Role, reason_against, reason_against_task
from dtf_lightning.farm.server.tasks import UnknownTask
from dtf_lightning.farm.server.wire.refusing import refuse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from dtf_lightning.farm.results.history import History
    from dtf_lightning.farm.server.pool import Pool
    from dtf_lightning.farm.server.tasks import Tasks

HELD = 20_000
"""Attempts of which it is known who made them, also after another one counts: their output may still come."""
_AT_ITS_START = ("attempt.secrets", "attempt.token")
_OF_ATTEMPTS = ("attempt.stdin", "attempt.logs", "attempt.offer_artifacts", "attempt.put_artifact", *_AT_ITS_START)
HEARD = 5.0
"""Seconds for this coordinator to hear of an attempt that a worker was told of by another one."""


class Permits:
    """Those of one coordinator. Runs on its event loop."""

    def __init__(self, pool: Pool, tasks: Tasks, history: History) -> None:
        self._pool = pool
        self._tasks = tasks
        self._history = history
        self._makers: OrderedDict[tuple[str, int], tuple[str, ...]] = OrderedDict()
        pool.listeners.append(self._changed)

    def stand_before(self, routes: Iterable[BaseRoute]) -> None:
        """Put a check before each of these routes."""
        for route in routes:
            if isinstance(route, APIRoute):
                route.app = self._checked(route.app, route.operation_id or "")
            elif isinstance(route, APIWebSocketRoute | WebSocketRoute):
                route.app = self._checked(route.app, route.name)
            elif isinstance(route, Route):
                if not route.path.startswith(OPEN_PAGES):
                    route.app = self._checked(route.app, PAGE.get(route.path, ""), page=True)
            elif not getattr(route, "path", "").startswith(OPEN_PAGES):
                raise AssertionError(f"{route} is of no kind that can be checked")

    def _checked(self, app: ASGIApp, operation: str, *, page: bool = False) -> ASGIApp:
        async def checked(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                scope = await (self._page(operation, scope) if page else self.check(operation, scope))
            except (Unauthorised, Forbidden) as error:
                await refuse(403 if isinstance(error, Forbidden) else 401, str(error), scope, receive, send)
                return
            except StoreError as error:
                answer = JSONResponse({"error": f"etcd does not answer: {error}"}, 503, {"Retry-After": "1"})
                await answer(scope, receive, send)
                return
            await app(scope, receive, send)

        return checked

    async def _page(self, operation: str, scope: Scope) -> Scope:
        """The page shows the whole farm: it is for those who may see all of it."""
        action = scope["path_params"].get("action")
        wanted = ACTIONS.get(str(action), "") if scope["path"].startswith("/do/") else operation
        if action is not None and not wanted:
            wanted = "dashboard.get"  # the page says which actions there are
        for one in ("dashboard.get", wanted):
            _refuse_role(identity_of(scope), one)
        return scope

    async def check(self, operation: str, scope: Scope) -> Scope:
        """Return the scope as a route gets it. Raises `Forbidden`, and what etcd raises."""
        identity = identity_of(scope)
        _refuse_role(identity, operation)
        if identity.role is Role.TASK:
            await self._refuse_task(identity, operation, scope)
        if identity.projects:
            scope = await self._narrowed(identity, PERMISSIONS[operation].reach, scope)
        if operation in _AT_ITS_START:
            revision = _revision(scope)
            if revision.isdecimal() and len(revision) < 20:
                await self._hear_of(scope["path_params"]["task_id"], int(revision))
        if identity.role is Role.WORKER:
            self._refuse_others(identity, operation, scope)
        return scope

    # --- a token that is limited to projects ---------------------------------------------------------------------------

    async def _narrowed(self, identity: Identity, reach: Reach, scope: Scope) -> Scope:
        if reach is Reach.LIST:
            return {**scope, "query_string": narrowed_query(identity, scope["query_string"])}
        named = scope["path_params"]
        if reach in (Reach.TASK, Reach.TASKS):
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("tasks", [])
            tasks = asked if reach is Reach.TASKS else [str(named.get("task_id") or named["result_id"])]
            for task in ",".join(tasks).split(","):
                with contextlib.suppress(UnknownTask):  # the route says so
                    refuse_projects(identity, [await self._project_of(task)])
        elif reach is Reach.JOB:
            held = self._pool.mirror.get(Kind.ORCHESTRATION, str(named["task_id"]))
            if held is not None and isinstance(held.value, OrchestrationRecord):  # else the route says so
                refuse_projects(identity, [held.value.project])
        elif reach is Reach.PLAN:
            plan = str(named["plan_id"])
            live = {one.specification.project for one in self._pool.live_tasks() if one.specification.plan == plan}
            refuse_projects(identity, live | set(await asyncio.to_thread(self._history.projects, plan)))
        return scope

    async def _project_of(self, task: str) -> str:
        """Raises `UnknownTask`, `Forbidden` where nobody knows any more, and what etcd raises."""
        told: dict[str, Any] = await self._tasks.task(task)
        project = (told.get("metadata") or {}).get("project")
        if not project:
            raise Forbidden(
                f"of which project the task {task} was is not kept any more, and this token is limited to some"
            )
        return str(project)

    # --- a worker -----------------------------------------------------------------------------------------------------

    def _refuse_others(self, identity: Identity, operation: str, scope: Scope) -> None:
        if operation == "worker.tasks":
            refuse_name(identity, scope["path_params"]["worker_id"])
        elif operation in _OF_ATTEMPTS:
            task = scope["path_params"]["task_id"]
            refuse_attempt(identity, task, self._makers_of(task, _revision(scope)))

    async def _hear_of(self, task: str, revision: int) -> None:
        """Wait for an attempt that may have come about a moment ago, at another coordinator."""
        await self._pool.wait_for(task, lambda: self._pool.mirror.revision >= revision, HEARD)

    # --- a task --------------------------------------------------------------------------------------------------------

    async def _refuse_task(self, identity: Identity, operation: str, scope: Scope) -> None:
        """Raise `Unauthorised` where its attempt counts no more, and `Forbidden` for what is another's."""
        await self._hear_of(identity.subject, identity.number)
        live = self._pool.live(identity.subject)
        if live is None or live.revision != identity.number:
            raise Unauthorised("the attempt for which this token was made counts no more, and the token ended with it")
        if reason := reason_against_task(operation, live.specification.permissions):
            raise Forbidden(reason)
        named = scope["path_params"]
        if "plan_id" in named:
            refuse_subtask(identity, str(named["plan_id"]), named["plan_id"])
        for task in _tasks_named(scope):
            if task != identity.subject:
                with contextlib.suppress(UnknownTask):  # the route says so
                    told: dict[str, Any] = await self._tasks.task(task)
                    refuse_subtask(identity, task, (told.get("metadata") or {}).get("plan"))

    def _makers_of(self, task: str, revision: str) -> tuple[str, ...]:
        """Who makes an attempt, or has made it; without a revision, the one that counts."""
        live = self._pool.live(task)
        if live is not None and revision in ("", str(live.revision)):
            return live.attempt.workers
        return self._makers.get((task, int(revision)), ()) if revision.isdecimal() and len(revision) < 20 else ()

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.ATTEMPT and change.after is not None:
            attempt = change.after.value
            assert isinstance(attempt, Attempt)
            if attempt.workers:
                self._makers[change.names[0], change.after.mod_revision] = attempt.workers
                if len(self._makers) > HELD:
                    self._makers.popitem(last=False)


def _tasks_named(scope: Scope) -> list[str]:
    """Return the tasks that a request is about, by its path or its query."""
    asked = parse_qs(scope["query_string"].decode("latin-1")).get("tasks", [])
    named = scope["path_params"].get("task_id")
    return [task for text in ([named] if named else []) + asked for task in str(text).split(",") if task]


def _revision(scope: Scope) -> str:
    told: list[str] = parse_qs(scope["query_string"].decode("latin-1")).get("revision", [""])
    return told[-1]


def _refuse_role(identity: Identity, operation: str) -> None:
    if reason := reason_against(operation, identity.role, limited=bool(identity.projects)):
        raise Forbidden(reason)
