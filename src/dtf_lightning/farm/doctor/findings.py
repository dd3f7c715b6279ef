"""What a check has found: how bad it is, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    GOOD = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check has found."""

    what: str
    level: Level
    told: str
    remedy: str = ""
    """What to do."""
