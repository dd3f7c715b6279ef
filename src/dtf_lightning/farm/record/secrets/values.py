"""The value of a secret's record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SecretRecord:
    """A secret of a project, by both names. Times are seconds since the epoch."""

    sealed: str
    """Its value, by `security.sealing`."""
    key: str
    """Id of the key that opens it."""
    changed: float
    """When its value was set last."""
    by: str = ""
    """Who did."""
