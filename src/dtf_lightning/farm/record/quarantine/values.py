"""The value of a test's quarantine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class QuarantineRecord:
    """A test of a project whose failures do not count until `expires`. Times are seconds since the epoch."""

    owner: str
    """Who mends it."""
    reason: str
    added: float
    expires: float
    by: str = ""
    """Who has asked for it."""
