"""The routes of secrets: set, listed and removed by people of their project, given to the worker that makes an attempt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, HTTPException, Path, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from dtf_lightning.farm.rules.needs import LONGEST_SECRET
from dtf_lightning.farm.security.identity import identity_of
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.security.sealing.ring import WrongKey
from dtf_lightning.farm.server.models import StrictModel
from dtf_lightning.farm.server.secrets.secret_keeper import NoSuchSecret

if TYPE_CHECKING:
    from dtf_lightning.farm.server.secrets.secret_keeper import SecretKeeper

Project = Annotated[str, Path(min_length=1, max_length=100)]
Name = Annotated[str, Path(min_length=1, max_length=100)]
NO_STORE = {"Cache-Control": "no-store"}


class SecretRequest(StrictModel):
    """A secret as it is set."""

    value: Annotated[str, Field(max_length=LONGEST_SECRET)] = Field(repr=False)


def add_secrets(app: FastAPI, keeper: SecretKeeper) -> None:
    """Add the routes to a coordinator's application."""

    @app.get("/api/secrets", operation_id="secret.list")
    async def list_secrets(project: str = "") -> dict[str, Any]:
        """Names, and who set each when; no values. `project`: only of this one."""
        return {"secrets": keeper.list(project)}

    @app.post("/api/secrets/rotate", operation_id="secret.rotate")
    async def rotate_secrets() -> dict[str, Any]:
        """Seal all of them with the key that is the first of the coordinator's keys now."""
        return await keeper.rotate()

    @app.put("/api/secrets/{project}/{name}", operation_id="secret.set")
    async def set_secret(project: Project, name: Name, asked: SecretRequest, request: Request) -> dict[str, Any]:
        """Nobody is told the value again but the workers whose attempts name it."""
        identity = identity_of(request.scope)
        refuse_projects(identity, [project])
        return await keeper.set(project, name, asked.value, by=identity.subject)

    @app.delete("/api/secrets/{project}/{name}", operation_id="secret.remove")
    async def remove_secret(project: Project, name: Name, request: Request) -> dict[str, Any]:
        """Attempts that run keep what they have."""
        refuse_projects(identity_of(request.scope), [project])
        try:
            await keeper.remove(project, name)
        except NoSuchSecret as error:
            raise HTTPException(404, str(error)) from error
        return {"project": project, "name": name, "removed": True}

    @app.post("/api/tasks/{task_id}/secrets", operation_id="attempt.secrets")
    async def secrets_of_attempt(task_id: str, revision: Annotated[int, Query(ge=1)], request: Request) -> JSONResponse:
        """What the farm keeps of the secrets that the attempt's task names, while that attempt counts."""
        try:
            values = await keeper.of_attempt(identity_of(request.scope), task_id, revision)
        except WrongKey as error:
            raise HTTPException(422, str(error)) from error
        return JSONResponse({"secrets": values}, headers=NO_STORE)
