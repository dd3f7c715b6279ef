"""The routes of tokens: made, listed and revoked by admins; and those by which a worker joins and stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from dtf_lightning.farm.security.identity import Forbidden, Unauthorised, identity_of
from dtf_lightning.farm.security.keys import LONGEST_LIFE
from dtf_lightning.farm.security.permissions import GIVEN, Role
from dtf_lightning.farm.server.doors.office import NameTaken, UnknownToken
from dtf_lightning.farm.server.models import StrictModel

if TYPE_CHECKING:
    from dtf_lightning.farm.server.doors.office import TokenOffice

MONTH = 30 * 86400.0
Name = Annotated[str, Field(max_length=100)]


class TokenRequest(StrictModel):
    """A token as it is asked for."""

    role: Literal["viewer", "developer", "ci", "worker", "operator", "admin"]
    subject: Name = ""
    """Whose it is, for lists and the audit file; of a worker's token the worker's name. "": as who asks."""
    projects: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=100)
    """To which it is limited; none: to none."""
    seconds: float = Field(default=MONTH, ge=1, le=LONGEST_LIFE)
    """For which it is good."""
    uses: int | None = Field(default=None, ge=1, le=100_000)
    """So many workers can join with it; `null`: it is no token to join with."""


class JoinRequest(StrictModel):
    """A worker that joins, or asks for its next tokens."""

    worker_id: Annotated[str, Field(min_length=1, max_length=100)]
    nonce: Annotated[str, Field(min_length=16, max_length=100)]
    """Chosen at random for this one request, and kept until its answer came: asking again with it is asking once."""


assert {role.value for role in GIVEN} == set(TokenRequest.model_fields["role"].annotation.__args__)  # type: ignore[union-attr]


def add_tokens(app: FastAPI, office: TokenOffice) -> None:
    """Add the routes to a coordinator's application."""

    @app.post("/api/tokens", operation_id="token.create")
    async def create(asked: TokenRequest, request: Request) -> dict[str, Any]:
        """The answer's `token` is told this once."""
        return await office.create(
            identity_of(request.scope),
            role=Role(asked.role),
            subject=asked.subject,
            projects=tuple(asked.projects),
            life=asked.seconds,
            uses=asked.uses,
        )

    @app.get("/api/tokens", operation_id="token.list")
    async def listed() -> dict[str, Any]:
        """Those that are not over, and workers that have joined."""
        return {"tokens": office.all()}

    @app.delete("/api/tokens/{token_id}", operation_id="token.revoke")
    async def revoke(
        token_id: str, request: Request, reason: Annotated[str, Query(max_length=1000)] = ""
    ) -> dict[str, Any]:
        """Every coordinator refuses it as soon as etcd has told it, and ends its connections."""
        return await office.revoke(identity_of(request.scope).subject, token_id, reason)

    @app.post("/api/tokens/rotate-keys", operation_id="token.rotate_keys")
    async def rotate(forget: bool = False) -> dict[str, Any]:
        """A new key signs from now on. `forget`: all tokens that older ones have signed are refused at once."""
        return await office.rotate(forget=forget)

    @app.post("/api/join", operation_id="token.join")
    async def join(asked: JoinRequest, request: Request) -> dict[str, Any]:
        """With a token to join with: a token for an hour, and one that is good once, for the next two."""
        return await office.join(identity_of(request.scope), asked.worker_id, asked.nonce)

    @app.post("/api/refresh", operation_id="token.refresh")
    async def refresh(asked: JoinRequest, request: Request) -> dict[str, Any]:
        """With a token for the next ones. One that was used before ends all of its worker's tokens."""
        identity = identity_of(request.scope)
        if identity.subject != asked.worker_id:
            raise Forbidden(f"this token is of the worker {identity.subject!r}, not of {asked.worker_id!r}")
        return await office.refresh(identity, asked.nonce)

    @app.post("/api/tasks/{task_id}/token", operation_id="attempt.token")
    async def token_of_attempt(task_id: str, revision: Annotated[int, Query(ge=1)], request: Request) -> JSONResponse:
        """For the command of a task that was submitted with `permissions`; it ends with the attempt."""
        told = await office.of_attempt(identity_of(request.scope), task_id, revision)
        return JSONResponse(told, headers={"Cache-Control": "no-store"})

    async def refused(_: Request, error: Exception) -> Response:
        statuses: dict[type[Exception], int] = {Unauthorised: 401, Forbidden: 403, UnknownToken: 404, NameTaken: 409}
        return JSONResponse({"error": str(error)}, statuses[type(error)])

    for kind in (Unauthorised, Forbidden, UnknownToken, NameTaken):
        app.add_exception_handler(kind, refused)
