"""The API's own description, as OpenAPI 3.1: `GET /api/openapi.json`, and `dtf farm openapi` without a farm."""

from __future__ import annotations

from collections.abc import Mapping
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


def _json(reference: str) -> Mapping[str, Any]:
    return {"application/json": {"schema": {"$ref": reference}}}
