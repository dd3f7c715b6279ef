"""What tells two requests apart that were made under one idempotency key. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = 3
"""Differences that are told; of the others it is said how many there are."""
CHARACTERS = 60
"""Of each value."""


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in what two requests differ, a phrase for each field; none: they are the same.

    Args:
        before: field -> value, of what was asked for first; a field that is not there has its default.
        now: of what is asked for now.
    """
    told: list[str] = []
    for field in sorted({*before, *now}):
        one, other = before.get(field), now.get(field)
        if one == other:
            continue
        if isinstance(one, Mapping | None) and isinstance(other, Mapping | None):
            told += [f"{field}.{phrase}" for phrase in differences(one or {}, other or {})]
        else:
            told.append(f"{field} was {_shown(one)}, now it is {_shown(other)}")
    return told


def sentence(told: list[str]) -> str:
    """Return differences as a part of a sentence; "" for none."""
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(told[:SHOWN]) + more


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = repr(value)
    return text if len(text) <= CHARACTERS else f"{text[: CHARACTERS - 3]}..."
