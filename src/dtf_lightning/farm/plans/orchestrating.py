"""`orchestrate` of a plan's task: how a job is split over devices, and how its results become one."""

from __future__ import annotations

from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.dividing import MAX_SUBTASKS, PIECES
from dtf_lightning.farm.orchestrate.merging import RULES, read_rule
from dtf_lightning.farm.orchestrate.splitting import Strategy
from dtf_lightning.settings.marked_yaml import Node, nearest

STRATEGIES = tuple(one.value for one in Strategy)
_TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "strategy": {
            "description": "How it is split; without it `auto`, which chooses and says why.",
            "enum": list(STRATEGIES),
        },
        "inputs": {
            "description": "How many there are (a subtask gets `begin` and `end`), or a list of them (it gets `inputs`).",
            "oneOf": [{"type": "integer", "minimum": 1}, {"type": "array", "minItems": 1}],
        },
        "functions": {"description": "Words, each of which is given to one subtask as `function`.", **_TEXTS},
        "models": {"description": "Of an ensemble: words, each given to one subtask as `model`.", **_TEXTS},
        "devices": {"description": "Of an ensemble: labels of workers, on each of which the same is done.", **_TEXTS},
        "pieces": {
            "description": f"Shares of the inputs for each device; without it {PIECES}.",
            "type": "integer",
            "minimum": 1,
            "maximum": 100,
        },
        "merge": {
            "description": f"How results become one: {', '.join(RULES)}; or a mapping with `how` and its options.",
            "oneOf": [{"type": "string"}, {"type": "object"}],
        },
    },
}
KEYS = tuple(SCHEMA["properties"])


def orchestrated(node: Node, what: str) -> dict[str, Any]:
    """Return how a job is split and merged. Raises `SettingsError` with the place."""
    node.refuse_unknown(KEYS, what)
    found: dict[str, Any] = {}
    for name, one in node.value.items():
        value = _plain(one)
        if name == "strategy" and value not in STRATEGIES:
            raise one.error(
                f"{name} is one of {', '.join(STRATEGIES)}, got {one.kind}{nearest(str(value), STRATEGIES)}"
            )
        if name == "inputs" and not (isinstance(value, list) or (type(value) is int and value > 0)):
            raise one.error(f"{name} is a number from 1 up, or a list, got {one.kind}")
        if name == "pieces" and not (type(value) is int and 1 <= value <= 100):
            raise one.error(f"{name} is a whole number from 1 to 100, got {one.kind}")
        if name in ("functions", "models", "devices"):
            value = [part.scalar(f"each of {name}") for part in one.sequence(name)]
            if not 1 <= len(value) <= MAX_SUBTASKS:
                raise one.error(f"{name} is a list of 1 to {MAX_SUBTASKS} words, got {len(value)}")
        if name == "merge":
            try:
                read_rule(value)
            except SettingsError as error:
                raise one.error(str(error)) from None
        found[name] = value
    if not found.keys() & {"inputs", "functions", "models", "devices"}:
        raise node.error(f"{what} says what is divided: `inputs`, `functions`, `models` or `devices`")
    return found


def _plain(node: Node) -> Any:
    """Return a value without its places."""
    if isinstance(node.value, list):
        return [_plain(one) for one in node.value]
    if isinstance(node.value, dict):
        return {name: _plain(one) for name, one in node.value.items()}
    return node.value
