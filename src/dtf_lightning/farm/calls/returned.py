"""What a call has returned, as the process that made it tells its worker, and the farm its clients: a small JSON object.

| told | what it says |
|---|---|
| `{"value": 9}` | it returned this |
| `{"artifact": "value.json"}` | it returned what this file of the task holds, as JSON |
| `{"artifact": "value.pickle", "python": "3.11"}` | the same, as a pickle of this Python |
| `{"error": "ValueError: no such file"}` | it raised; with `artifact` and `python` the exception itself is in a file |

Rule: what is told fits into an envelope (`MAX_TOLD`); a larger value is a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_VALUE = 1000
"""Characters of a value's JSON that is told by itself."""
MAX_TOLD = 1100
MAX_ERROR = 700
"""Characters of what is told of an exception."""
VALUE_JSON, VALUE_PICKLE, EXCEPTION_PICKLE = "value.json", "value.pickle", "exception.pickle"
"""Names of files that a call leaves."""
_FIELDS = {"value", "artifact", "python", "error"}
_DEPTH = 20


def write_told(told: Mapping[str, Any]) -> str:
    """Return what is told as a text."""
    return json.dumps(told, allow_nan=False)


def read_told(text: str) -> dict[str, Any]:
    """Return what a text tells; nothing for "" and for what is no such text: a task may write anything."""
    try:
        told = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict) or not told.keys() <= _FIELDS:
        return {}
    texts = all(isinstance(told.get(name, ""), str) for name in ("artifact", "python", "error"))
    return told if texts else {}


def without_error(told: Mapping[str, Any]) -> str:
    """Return as a text what is told beside the error, which stands in the reason; "" for nothing."""
    rest = {name: value for name, value in told.items() if name != "error"}
    text = write_told(rest) if rest else ""
    return text if len(text) <= MAX_TOLD else ""


def as_json(value: Any) -> str | None:
    """Return a value as JSON from which the same value comes back, type for type; `None` where JSON changes it."""
    return json.dumps(value) if _comes_back(value, _DEPTH) else None


def _comes_back(value: Any, depth: int) -> bool:
    kind = type(value)
    if value is None or kind in (bool, int):
        return True
    if kind is str:
        return value.isprintable() or not any("\ud800" <= sign <= "\udfff" for sign in value)
    if kind is float:
        return math.isfinite(value)
    if depth == 0:
        return False
    if kind is list:
        return all(_comes_back(one, depth - 1) for one in value)
    if kind is dict:
        return all(type(name) is str and _comes_back(name, 0) for name in value) and all(
            _comes_back(one, depth - 1) for one in value.values()
        )
    return False
