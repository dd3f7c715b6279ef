"""Durations as options give them."""

from __future__ import annotations

import math

from dtf_lightning.errors import SettingsError


def seconds_of_option(text: str, option: str) -> float:
    """Return seconds, of `30`, `60s` or `5m`. Raises `SettingsError`, naming the option."""
    from dtf_lightning.settings.durations import seconds_of

    try:
        seconds = seconds_of(text) or float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise SettingsError(f"{option} {text}: expected seconds, or a text such as 60s or 5m")
    return seconds
