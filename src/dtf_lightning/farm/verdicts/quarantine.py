"""Which tests may fail for a while, and until when. Pure.

Rules that this file guards:
- A quarantine ends: it has an expiry, `LONGEST` away at most. Then the test counts again, and that is said where it fails.
- It has an owner and a reason. Nobody but a person puts a test there.
- A quarantine of a test covers its parameters: `test_a` covers `test_a[1]`, not `test_ab`.
- In quarantine a test runs, and is shown as it ended; its failure counts for nothing, and a pass is a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError

DAY = 86400.0
LONGEST = 90 * DAY
"""Seconds: a test that is not mended by then is looked at again."""
MAX_WORDS = 1000
"""Characters of a test's name, an owner, a reason."""


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A test that may fail, or might until lately."""

    test: str
    owner: str
    reason: str
    expires: str
    """ISO 8601 in UTC."""
    active: bool
    """Whether it still may."""

    @property
    def told(self) -> str:
        """For people."""
        return f"in quarantine until {self.expires[:10]}, {self.owner}: {self.reason}"

    @property
    def told_expired(self) -> str:
        """For people, when it counts again."""
        return f"its quarantine has expired on {self.expires[:10]}, {self.owner}: {self.reason}"


class Quarantine:
    """All of one project, as a coordinator tells of them."""

    def __init__(self, told: Iterable[Mapping[str, Any]]) -> None:
        self._entries = [
            Quarantined(
                test=str(one["test"]),
                owner=str(one["owner"]),
                reason=str(one["reason"]),
                expires=str(one["expires"]),
                active=bool(one["active"]),
            )
            for one in told
        ]

    def of(self, test: str) -> Quarantined | None:
        """Return by what a test may fail; of several the one that lasts longest."""
        return self._latest(test, active=True)

    def expired(self, test: str) -> Quarantined | None:
        """Return by what a test that may not fail might until lately."""
        return None if self.of(test) else self._latest(test, active=False)

    def _latest(self, test: str, *, active: bool) -> Quarantined | None:
        found = [one for one in self._entries if one.active is active and covers(one.test, test)]
        return max(found, key=lambda one: one.expires, default=None)


def covers(quarantined: str, test: str) -> bool:
    """Whether a quarantine under this name is one of a test."""
    return test == quarantined or test.startswith(f"{quarantined}[")


def check(*, test: str, owner: str, reason: str, seconds: float) -> None:
    """Raise `SettingsError` for a quarantine without owner or reason, or with no end or one too far away."""
    for name, words in (("test", test), ("owner", owner), ("reason", reason)):
        if not words.strip() or len(words) > MAX_WORDS:
            raise SettingsError(f"the {name} of a quarantine has 1 to {MAX_WORDS} characters, got {words[:80]!r}")
    if not 0 < seconds <= LONGEST:
        raise SettingsError(
            f"a quarantine ends after {LONGEST / DAY:g} days at most, got {seconds / DAY:g} days: when it expires, look at the "
            "test again, and add it once more if need be"
        )
