"""The longest tests first, so that workers which share the tests end together; those of one unit (`units.py`) stay together.

`durations.json` holds the seconds of the tests that take one or more; `pytest --note-durations` writes it anew. Only the
order depends on it: a test that is not in it comes when it comes.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from support.units import unit_of

if TYPE_CHECKING:
    import pytest

FILE = Path(__file__).parents[1] / "durations.json"
LONG = 1.0
"""Seconds."""


def sort(items: list[pytest.Item]) -> None:
    """Units whose duration is known, the longest first; the others after them, in their order."""
    known: dict[str, float] = json.loads(FILE.read_text()) if FILE.exists() else {}
    seconds: Counter[str] = Counter()
    for item in items:
        seconds[unit_of(item.nodeid)] += known.get(item.nodeid, 0.0)
    items.sort(key=lambda item: -seconds[unit_of(item.nodeid)])


class Durations:
    """A plugin that notes them; with several workers, in the process that hears from all."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":  # fixtures of a wider scope fall to whoever comes first
            self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        long = {name: round(seconds, 1) for name, seconds in sorted(self._seconds.items()) if seconds >= LONG}
        FILE.write_text(json.dumps(long, indent=0) + "\n")
