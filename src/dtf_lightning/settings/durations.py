"""Durations as people write them: `90s`, `5m`, `1h30m`, `7d`."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
DURATION_PATTERN = r"^(\d+(\.\d+)?(ms|s|m|h|d))+$"


def seconds_of(text: str) -> float | None:
    """Return the seconds that a text such as `1h30m` stands for; `None` for any other text."""
    if not re.fullmatch(DURATION_PATTERN, text):
        return None
    return sum(float(amount) * _UNITS[unit] for amount, unit in _PART.findall(text))
