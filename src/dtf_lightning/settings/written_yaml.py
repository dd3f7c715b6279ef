"""Values as YAML, by the library: nothing is pasted."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any


def write_yaml(*documents: Any) -> str:
    """Return values as YAML, several as documents of one file. Mappings keep their order, tuples are lists."""
    yaml: Any = importlib.import_module("yaml")
    text: str = yaml.safe_dump_all(map(_plain, documents), sort_keys=False, allow_unicode=True, width=120)
    return text


def _plain(value: Any) -> Any:
    """The value without tuples, and with no list twice: YAML would name it and point there."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
