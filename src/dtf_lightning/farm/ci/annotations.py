"""A report's failures beside the lines of code: GitHub's workflow commands and check runs, GitLab's code quality. Pure.

Rule: nothing that a test has said becomes a command: what is written to a job's output begins with a command of ours, and is one line.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from dtf_lightning.farm.ci.report import Case, Outcome, Report

MAX_COMMANDS = 10
"""GitHub shows so many errors of a step, and no more."""
CHECK_BATCH = 50
"""Annotations of one request of a check run."""
_MESSAGE = 2000


def workflow_commands(report: Report) -> list[str]:
    """Return GitHub's workflow commands for what failed, the first of them; the last counts the others."""
    bad = [case for _, case in report.bad()]
    shown = bad if len(bad) <= MAX_COMMANDS else bad[: MAX_COMMANDS - 1]
    lines = [_command("error", _message(case), file=case.file, line=case.line, title=case.title) for case in shown]
    lines += [_command("error", problem, title=report.name) for problem in report.problems[: MAX_COMMANDS - len(lines)]]
    if len(shown) < len(bad):
        lines.append(
            _command("error", f"{len(bad) - len(shown)} more failed; the job's summary has them", title=report.name)
        )
    for one in report.judged[:MAX_COMMANDS]:
        if one.bad or not one.sure:
            lines.append(_command("error" if one.bad else "warning", one.sentence, title=report.name))
    return lines


def check_annotations(report: Report) -> list[dict[str, Any]]:
    """Return annotations of a check run: of what failed in a file that is known."""
    return [
        {
            "path": case.file,
            "start_line": max(case.line, 1),
            "end_line": max(case.line, 1),
            "annotation_level": "failure",
            "title": case.title[:250],
            "message": _message(case),
        }
        for _, case in report.bad()
        if case.file
    ]


def code_quality(report: Report) -> bytes:
    """Return GitLab's report of code quality: of what failed in a file that is known."""
    found = [
        {
            "description": f"{case.title}: {_message(case)}",
            "check_name": "dtf farm",
            "fingerprint": hashlib.sha256(f"{report.name}\0{case.title}".encode(errors="replace")).hexdigest(),
            "severity": "major" if case.outcome is Outcome.FAILED else "critical",
            "location": {"path": case.file, "lines": {"begin": max(case.line, 1)}},
        }
        for _, case in report.bad()
        if case.file
    ]
    return json.dumps(found, indent=1).encode() + b"\n"


def _message(case: Case) -> str:
    text = case.message or case.text or case.outcome.value
    where = f" (on {case.worker})" if case.worker else ""
    return (text if len(text) <= _MESSAGE else text[: _MESSAGE - 4] + " ...") + where


def _command(kind: str, message: str, *, file: str = "", line: int = 0, title: str = "") -> str:
    properties = {"file": file, "line": str(line) if file and line else "", "title": title}
    told = ",".join(f"{name}={_property(value)}" for name, value in properties.items() if value)
    return f"::{kind}{' ' if told else ''}{told}::{_data(message)}"


def _data(text: str) -> str:
    escaped = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return "".join(sign if sign.isprintable() else " " for sign in escaped)


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
