"""The API's own description, as OpenAPI 3.1: `GET /api/openapi.json`, and `dtf farm openapi` without a farm."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.routes.operations import OPERATIONS

if TYPE_CHECKING:
    from fastapi import FastAPI
    from pydantic import BaseModel

REFERENCE = "#/components/schemas/{model}"
BODIES: dict[str, type[BaseModel]] = {"task.submit": models.Submission}
"""Operation -> the model of its body, where the route reads the bytes itself."""
BYTES = ("attempt.logs", "source.put")
"""Operations whose bodies are bytes."""


def add_description(app: FastAPI) -> None:
    """Add the route to an application that has all others."""

    @app.get("/api/openapi.json", operation_id="api.describe")
    async def openapi() -> dict[str, Any]:
        return describe(app)


def describe(app: FastAPI) -> dict[str, Any]:
    """Return what the API takes, as OpenAPI."""
    told = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = told.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    told["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    told["security"] = [{"token": []}]
    for path in told["paths"].values():
        for operation in path.values():
            name = operation["operationId"]
            known = OPERATIONS[name]
            operation["summary"], operation["x-access"] = known.summary, known.access.value
            operation["responses"] = {
                **{code: one for code, one in operation["responses"].items() if code != "422"},
                "default": {"description": "An error", "content": _json(REFERENCE.format(model="Error"))},
            }
            if name in BODIES:
                schema = BODIES[name].model_json_schema(ref_template=REFERENCE)
                schemas.update(schema.pop("$defs", {}))
                schemas[BODIES[name].__name__] = schema
                content = _json(REFERENCE.format(model=BODIES[name].__name__))
                operation["requestBody"] = {"required": True, "content": content}
            elif name in BYTES:
                operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {}}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return told


def describe_without_a_farm() -> dict[str, Any]:
    """Return the same, where no farm runs."""
    from dtf_lightning import __version__
    from dtf_lightning.etcd.memory.store import MemoryStore
    from dtf_lightning.farm.server.api import build_app
    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.presence import CoordinatorPlace

    async def build(store: MemoryStore, folder: Path) -> dict[str, Any]:
        place = CoordinatorPlace(farm="farm", name="c", address="", folder=folder, version=__version__)
        return describe(build_app(Coordinator(store, place)))

    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore()
        try:
            return asyncio.run(build(store, Path(folder)))
        finally:
            store.close()


def _json(reference: str) -> Mapping[str, Any]:
    return {"application/json": {"schema": {"$ref": reference}}}
