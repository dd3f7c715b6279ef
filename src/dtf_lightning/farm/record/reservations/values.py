"""The value of a reservation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ReservationRecord:
    """Workers on which from `begin` to `end` nothing starts, or only tasks of one project. Times are seconds since the epoch."""

    workers: tuple[str, ...]
    begin: float
    end: float
    lead: float = 0.0
    """Seconds before `begin` from which on only that starts there which is expected to end before it."""
    project: str = ""
    """Whose tasks may start there; "": nobody's."""
    reason: str = ""
    by: str = ""
    """Who has asked for it."""
