"""What was said of a test becomes reports and warnings here, as if it had run here."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

import pytest

from dtf_lightning.farm.pytest_runs.courses import Course
from dtf_lightning.farm.pytest_runs.quarantined import QuarantinedTests

CRASH = "crash"
"""Kind of a line, made here, that says why a test has no report of its own."""


class Replay:
    """Tells pytest's hooks. `config`: of the run."""

    def __init__(self, config: pytest.Config, quarantined: QuarantinedTests) -> None:
        self._config = config
        self._quarantined = quarantined
        self._shows_output = config.option.capture in ("no", "tee-sys")
        self._hides_output = config.option.capture == "no"

    def test(self, item: pytest.Item, course: Course) -> None:
        """Report one test. Raises what ended the run in it: `pytest.exit.Exception`, `KeyboardInterrupt`, `RuntimeError`."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        shown = 0
        phases = []
        late = []
        for line in course.lines:
            match line["kind"]:
                case "report":
                    report = self._report(line["data"])
                    shown = self._show_output(report, shown)
                    phases.append(getattr(report, "when", None))
                    self._quarantined.excuse(report)
                    item.ihook.pytest_runtest_logreport(report=report)
                case "warning":
                    late.append(line)
                case other:
                    assert other == CRASH
                    crash = _crash(item, line["text"], "call" in phases)
                    self._quarantined.excuse(crash)
                    item.ihook.pytest_runtest_logreport(report=crash)
        if course.ends_run is not None and course.ends_run["kind"] != "finish":
            raise self.end_of(course.ends_run)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        for line in late:  # pytest tells them when a test is over
            self._warn(line)
        if course.ends_run is not None:
            item.session.shouldfail = course.ends_run["fail"] or item.session.shouldfail
            item.session.shouldstop = course.ends_run["stop"] or item.session.shouldstop

    def skip(self, item: pytest.Item, reason: str) -> None:
        """Report a test that no worker can run."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        place = (str(item.path), (item.location[1] or 0) + 1, f"Skipped: {reason}")
        for when, outcome, told in (("setup", "skipped", place), ("teardown", "passed", None)):
            item.ihook.pytest_runtest_logreport(report=_made(item, when, outcome, told))
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _report(self, data: Mapping[str, Any]) -> pytest.TestReport:
        report: pytest.TestReport = self._config.hook.pytest_report_from_serializable(
            config=self._config, data=dict(data)
        )
        return report

    def _show_output(self, report: pytest.TestReport, shown: int) -> int:
        """Print what a test has printed where the user wants to see it at once; returns how many parts were printed."""
        if self._shows_output:
            for name, text in report.sections[shown:]:
                if name.startswith(("Captured stdout", "Captured stderr")):
                    (sys.stderr if "stderr" in name else sys.stdout).write(text)
            shown = max(shown, len(report.sections))
            if self._hides_output:
                report.sections = [part for part in report.sections if not part[0].startswith("Captured std")]
        return shown

    def _warn(self, line: Mapping[str, Any]) -> None:
        category = _category(*line["category"])
        message = warnings.WarningMessage(
            _instance(category, line["text"]), category, line["filename"], line["lineno"], line=line["line"]
        )
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": line["nodeid"], "location": None}
        )

    @staticmethod
    def end_of(line: Mapping[str, Any]) -> BaseException:
        """Return what ended a run, as it is raised here."""
        match line["kind"]:
            case "exit":
                return pytest.exit.Exception(line["text"], line["code"])
            case "interrupt":
                return KeyboardInterrupt(line["text"])
            case _:
                return RuntimeError(f"pytest failed on a worker:\n{line['text']}")


def _crash(item: pytest.Item, text: str, called: bool) -> pytest.TestReport:
    return _made(item, "teardown" if called else "call", "failed", text)


def _made(item: pytest.Item, when: Any, outcome: Any, told: Any) -> pytest.TestReport:
    keywords: Any = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(item.nodeid, item.location, keywords, outcome, told, when)


def _category(module: str, name: str) -> type[Warning]:
    """Return a category of warnings that was told by its name; one of the same name where it is not known here."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    return type(name.rpartition(".")[2], (Warning,), {"__module__": module})


def _instance(category: type[Warning], text: str) -> Warning:
    try:
        made = category(text)
    except Exception:  # a category whose arguments are others; what it says is known
        return Warning(text)
    return made if str(made) == text else Warning(text)
