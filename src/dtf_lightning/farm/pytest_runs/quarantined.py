"""Failures of tests in quarantine: shown as expected ones, and counted as none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dtf_lightning.farm.verdicts.quarantine import Quarantine

if TYPE_CHECKING:
    import pytest

NAME = "dtf-farm-quarantine"
"""Of the plugin."""


class QuarantinedTests:
    """A plugin of pytest. `told`: what the farm tells of the project's quarantine."""

    def __init__(self, told: Iterable[Mapping[str, Any]]) -> None:
        self._quarantine = Quarantine(told)
        self._said: list[str] = []

    def excuse(self, report: pytest.TestReport) -> None:
        """Make a failure of a test in quarantine one that was expected, as of `xfail(strict=False)`; a pass stays a pass."""
        if not report.failed:
            return
        found = self._quarantine.of(report.nodeid)
        if found is not None:
            report.outcome = "skipped"
            report.wasxfail = found.told
            self._said.append(f"{report.nodeid} has failed, which does not count: {found.told}")
        elif (expired := self._quarantine.expired(report.nodeid)) is not None:
            self._said.append(f"{report.nodeid} counts again: {expired.told_expired}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was excused, and what is no more."""
        if self._said:
            terminalreporter.section("quarantine")
            for line in dict.fromkeys(self._said):
                terminalreporter.write_line(line)
