"""What a job has left, as a report: JUnit XML, `dtf farm run PLAN --json`, `dtf farm compare --json`, and plans of a farm.

Rule: a file that is not there, or broken, is told in the report and ends it as failed; the others are shown all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.junit import read_junit
from dtf_lightning.farm.ci.report import Case, Group, Judged, Outcome, Report

MAX_BYTES = 256 * 1024 * 1024
_ENDED_WELL = {
    "success": True,
    "0": True,
    "failure": False,
    "failed": False,
    "cancelled": False,
    "canceled": False,
    "skipped": False,
}
"""How GitHub and GitLab say how steps and jobs ended."""
_OUTCOMES = {"completed": Outcome.PASSED, "failed": Outcome.FAILED, "skipped": Outcome.SKIPPED}


def ended_well(text: str) -> bool | None:
    """Return whether a command ended well, by its exit code or by a forge's word. Raises `SettingsError` for another word."""
    word = text.strip().lower()
    if not word:
        return None
    if word in _ENDED_WELL:
        return _ENDED_WELL[word]
    if word.isascii() and word.isdecimal():
        return False
    raise SettingsError(f"--ended {text}: expected an exit code, or {', '.join(sorted(set(_ENDED_WELL) - {'0'}))}")


def read_report(name: str, files: Sequence[Path], ended: bool | None, plans: Iterable[Group] = ()) -> Report:
    """Return the report of a job.

    Args:
        files: what it has left, each told by its content.
        ended: whether its command ended well; `None`: nobody said.
        plans: what a farm says of plans.
    """
    groups, judged, problems = list(plans), list[Judged](), list[str]()
    for file in files:
        try:
            found = _read(file)
        except SettingsError as error:
            problems.append(str(error))
        else:
            groups += [one for one in found if isinstance(one, Group)]
            judged += [one for one in found if isinstance(one, Judged)]
    return Report(name=name, ended_well=ended, groups=tuple(groups), judged=tuple(judged), problems=tuple(problems))


def group_of_plan(plan: str, tasks: Iterable[Mapping[str, Any]], excused: Callable[[str, str], str]) -> Group:
    """Return a plan's tasks, as the API shows them.

    Args:
        excused: (project, name of a task) -> by what its failure does not count; "": it counts.
    """
    return Group(title=f"plan {plan}", kind="task", cases=tuple(_case(task, excused) for task in tasks))


def _read(file: Path) -> list[Group | Judged]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise SettingsError(f"{file} has more than {MAX_BYTES} bytes, and was not read")
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise SettingsError(f"{file} is not there: the command ended before it was written") from error
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from error
    if not data.strip():
        raise SettingsError(f"{file} is empty: the command ended before it was written")
    if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return [read_junit(data, file.name)]
    return _of_json(file, data)


def _of_json(file: Path, data: bytes) -> list[Group | Judged]:
    expected = "expected JUnit XML, or what `dtf farm compare --json` or `dtf farm run PLAN.yaml --json` printed"
    try:
        body = json.loads(data)
    except ValueError as error:
        raise SettingsError(f"{file} is neither XML nor JSON ({error}); {expected}") from error
    try:
        if isinstance(body, dict) and "verdicts" in body:
            return [_judged(one) for one in body["verdicts"]]
        if isinstance(body, dict) and "tasks" in body and "plan_id" in body:
            # Its exit code says whether a failure counts: one in quarantine does not.
            reason = "in quarantine" if body.get("exit_code") == 0 else ""
            return [group_of_plan(str(body["plan_id"]), body["tasks"], lambda _project, _name: reason)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingsError(f"{file} lacks what its kind has ({error!r}); {expected}") from error
    raise SettingsError(f"{file} is JSON of another kind; {expected}")


def _judged(body: Mapping[str, Any]) -> Judged:
    return Judged(
        verdict=str(body["id"]),
        metric=str(body["comparison"]["metric"]),
        state=str(body["verdict"]["state"]),
        base=str(body["base"]),
        candidate=str(body["candidate"]),
        num_pairs=int(body["verdict"]["num_pairs"]),
        sentence=str(body["sentence"]),
    )


def _case(task: Mapping[str, Any], excused: Callable[[str, str], str]) -> Case:
    status, metadata = str(task["status"]), task.get("metadata") or {}
    name = str(task.get("name") or task["task_id"])
    outcome, message = _OUTCOMES.get(status, Outcome.ERROR), str(task.get("error") or metadata.get("reason") or "")
    if outcome is Outcome.ERROR and not message:
        message = "it was cancelled" if status == "cancelled" else f"it has not ended: {status}"
    if outcome is Outcome.FAILED and (why := excused(str(metadata.get("project") or "default"), name)):
        outcome, message = Outcome.SKIPPED, f"it failed, which does not count: {why}"
    return Case(
        name=name,
        outcome=outcome,
        seconds=_seconds(task),
        message="" if outcome is Outcome.PASSED else message,
        text="" if outcome is Outcome.PASSED else f"dtf farm logs {task['task_id']}",
        worker=str(task.get("worker_id") or ""),
    )


def _seconds(task: Mapping[str, Any]) -> float:
    start, end = task.get("start_time"), task.get("end_time")
    if not start or not end:
        return 0.0
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())
