"""JSON Schema of a settings file of sections, for editors and checkers."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from typing import Any

from dtf_lightning.settings.sections import SettingsFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}
_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*\}"}
"""A text that stands for an environment variable is taken wherever a value is."""
_DURATION = {"type": "string", "pattern": "^[0-9]"}
_WORD = {"enum": ["true", "yes", "on", "1", "false", "no", "off", "0"]}


def settings_schema(cls: type[SettingsFile], title: str) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a settings file: its sections, their keys, types, defaults and meanings.

    What the checks of a section say beside its keys' types (a port is below 65536, a key needs another one) is not in it:
    `SettingsFile.load` has the last word.
    """
    sections = {name: _section(section) for name, section in cls.sections().items()}
    for key in cls.without_effect:
        section, _, name = key.partition(".")
        place = sections.setdefault(section, _mapping({}))
        if name == "*":
            place["additionalProperties"] = True
        else:
            place["properties"].setdefault(
                name, {"description": f"No effect: {cls.without_effect[key]}.", "deprecated": True}
            )
    return {"$schema": DIALECT, "title": title, **_mapping(sections)}


def _section(cls: type[Any]) -> dict[str, Any]:
    return _mapping({one.name: _key(one) for one in fields(cls) if one.metadata})


def _mapping(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _key(one: Field[Any]) -> dict[str, Any]:
    unit = one.metadata["unit"]
    described: dict[str, Any] = {"description": one.metadata["doc"] + (f" Unit: {unit}." if unit else "")}
    if one.default is not MISSING and one.default not in (None, "", ()):
        described["default"] = one.default
    kind = str(one.type)
    if (item := one.metadata["item"]) is not None:
        required = [inner.name for inner in fields(item) if inner.default is MISSING]
        members = _section(item) | {"type": "object"} | ({"required": required} if required else {})
        return {**described, "type": "array", "items": members}
    if kind.startswith("tuple"):
        word = {"type": ["string", "number", "boolean"]}
        return {**described, "anyOf": [word, {"type": "array", "items": word}]}
    name = _TYPES[kind.removesuffix(" | None")]
    taken: list[dict[str, Any]] = [{"type": name}]
    if name == "string":
        taken = [{"type": ["string", "number", "boolean"]}]  # a name 12 is a text here
    else:
        taken.append(_VARIABLE)
    if name == "boolean":
        taken.append(_WORD)
    if unit == "seconds":
        taken.append(_DURATION)
    if kind.endswith("| None"):
        taken.append({"type": "null"})
    return {**described, **(taken[0] if len(taken) == 1 else {"anyOf": taken})}
