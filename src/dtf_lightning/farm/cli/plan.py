"""`dtf farm run PLAN.yaml`: submits a plan, shows how it goes, and tells at the end what became of each task.

Rules that this file guards:
- Ids are made once: whatever is sent again, each task is submitted once.
- Ctrl-C cancels all that was submitted. A batch whose answer had not come is sent again first: only then is it known that
  none of its tasks comes after the cancellation.
- However many tasks there are, one request at a time waits for their ends.
"""

from __future__ import annotations

import argparse
import functools
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dtf_lightning.cli.main import DONE, INTERRUPTED
from dtf_lightning.farm.cli.exit_codes import code_of
from dtf_lightning.farm.cli.options import connect
from dtf_lightning.farm.cli.orchestrate.commands import tell_end
from dtf_lightning.farm.cli.schedules.commands import tell_registered
from dtf_lightning.farm.cli.tables import print_table

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client, TaskInfo
    from dtf_lightning.farm.plans.plan import Plan

HINTS = 10
"""Failed tasks whose logs are pointed at."""


def run_plan(path: str, arguments: argparse.Namespace) -> int:
    """Run the plan of a file, and return the exit code of its worst task that counts. One with a schedule is registered.

    Raises `SettingsError` for a plan that cannot work, before anything is submitted, and what `Client` raises.
    """
    from dtf_lightning.farm.plans.reading import read_plan
    from dtf_lightning.farm.plans.requests import requests_of
    from dtf_lightning.farm.record.task_id import array_id, new_task_id
    from dtf_lightning.farm.sources import pack

    plan = read_plan(path)
    with connect(arguments) as farm:
        digest = folder = ""
        if not arguments.no_source and (source := pack(Path.cwd())).num_files:
            digest, folder = farm.send_source(source), source.folder
        if plan.schedule is not None or plan.key or any(task.key or task.orchestrate for task in plan.tasks):
            told = farm.send_plan(
                Path(path).read_text(encoding="utf-8"),
                inputs=_sent(farm, plan),
                source=digest,
                folder=folder,
                name=plan.name,
                strict=arguments.strict,
            )
            if plan.schedule is not None:
                return tell_registered(plan.name, told["schedule"], as_json=arguments.json)
            return _follow_keyed(farm, plan.name, told, arguments)
        plan_id, now = new_task_id(time.time()), time.time()

        def new_id(is_array: bool) -> str:
            return array_id(new_task_id(now)) if is_array else new_task_id(now)

        requests = requests_of(
            plan, plan_id, new_id, source=digest, folder=folder, send=functools.cache(farm.send_input)
        )
        print(f"dtf farm: {len(requests)} tasks of the plan {plan.name}, {plan_id}", file=sys.stderr)
        ended: dict[str, TaskInfo] = {}
        try:
            submit_plan(farm, requests, strict=arguments.strict)
            if arguments.no_wait:
                _print_submitted(plan_id, requests, as_json=arguments.json)
                return DONE
            _follow(farm, plan_id, requests, ended, Progress(requests, sys.stderr if arguments.json else sys.stdout))
        except KeyboardInterrupt:
            farm.close()  # an answer may be half read
            farm.cancel_plan(plan_id, "Ctrl-C")
            print(f"dtf farm: what was left of the plan {plan_id} is cancelled", file=sys.stderr)
            return INTERRUPTED
        return _tell_end(farm, plan_id, requests, ended, as_json=arguments.json)


def _follow_keyed(farm: Client, name: str, told: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    """Follow a plan some tasks of which may have been submitted before, with others or as a whole."""
    plan_id, tasks = told["plan_id"], told["tasks"]
    before = sum(one["submission"] != "new" for one in tasks)
    jobs = told.get("orchestrated", [])
    split = f", {len(jobs)} jobs split over devices" if jobs else ""
    print(
        f"dtf farm: {len(tasks)} tasks of the plan {name}, {plan_id}, {before} submitted before{split}", file=sys.stderr
    )
    if arguments.no_wait:
        _print_submitted(plan_id, tasks, as_json=arguments.json)
        return DONE
    others = [one["task_id"] for one in tasks if one["submission"] == "same key"]
    ended: dict[str, TaskInfo] = {}
    try:
        progress = Progress(tasks, sys.stderr if arguments.json else sys.stdout)
        _follow(farm, plan_id, [one for one in tasks if one["task_id"] not in others], ended, progress)
        for info in farm.as_completed(others):
            ended[info.task_id] = info
            progress.ended(info)
        progress.close()
        code = max((tell_end(farm, one["task_id"], as_json=arguments.json) for one in jobs), default=DONE)
    except KeyboardInterrupt:
        farm.close()  # an answer may be half read
        farm.cancel_plan(plan_id, "Ctrl-C")
        print(f"dtf farm: what was left of the plan {plan_id} is cancelled", file=sys.stderr)
        return INTERRUPTED
    return max(code, _tell_end(farm, plan_id, tasks, ended, as_json=arguments.json) if tasks else DONE)


def _sent(farm: Client, plan: Plan) -> dict[str, str]:
    """Give the farm the files and folders of here that a plan names; returns path -> reference."""
    from dtf_lightning.farm.rules.inputs import is_local

    paths = {path for task in plan.tasks for path in task.inputs.values() if is_local(path)}
    return {path: farm.send_input(path) for path in sorted(paths)}


def submit_plan(farm: Client, requests: Sequence[Mapping[str, Any]], *, strict: bool = False) -> None:
    """Submit all; where the farm refuses some, or Ctrl-C comes, what was submitted is cancelled before that is raised."""
    from dtf_lightning.farm.client import BATCH
    from dtf_lightning.farm.http import FarmRefused

    warnings: dict[str, int] = {}
    for start in range(0, len(requests), BATCH):
        batch = requests[start : start + BATCH]
        try:
            answers = farm.submit_all(batch, strict=strict)
        except KeyboardInterrupt:
            print("dtf farm: finishing what is under way, then cancelling", file=sys.stderr)
            farm.close()  # an answer may be half read
            farm.submit_all(batch, strict=strict)
            raise
        except FarmRefused:
            farm.cancel_plan(batch[0]["plan"], "the farm refused a part of its plan")
            raise
        for told in answers:
            if "warning" in told:
                warnings[told["warning"]] = warnings.get(told["warning"], 0) + 1
    for warning, number in warnings.items():
        print(f"dtf farm: {number} of the tasks wait: {warning}", file=sys.stderr)


def _follow(
    farm: Client,
    plan_id: str,
    requests: Sequence[Mapping[str, Any]],
    ended: dict[str, TaskInfo],
    progress: Progress,
) -> None:
    try:
        for info in farm.plan_ends(plan_id, (request["task_id"] for request in requests)):
            ended[info.task_id] = info
            progress.ended(info)
    finally:
        progress.close()


class Progress:
    """Says what has ended: one line a task on a pipe; on a terminal one line that changes, and one for each that failed."""

    def __init__(self, requests: Sequence[Mapping[str, Any]], out: TextIO) -> None:
        self._names = {request["task_id"]: str(request["name"]) for request in requests}
        self._out = out
        self._changing = out.isatty()
        self._counts: dict[str, int] = {}
        self._draw()

    def ended(self, info: TaskInfo) -> None:
        """Tell of one task."""
        self._counts[info.status] = self._counts.get(info.status, 0) + 1
        if not self._changing or info.status != "completed":
            self._erase()
            print(self._line(info), file=self._out, flush=True)
        self._draw()

    def close(self) -> None:
        """Take the changing line away."""
        self._erase()
        self._out.flush()

    def _line(self, info: TaskInfo) -> str:
        told = [f"[{sum(self._counts.values())}/{len(self._names)}] {self._names[info.task_id]}: {info.status}"]
        if worker := info.raw.get("worker_id"):
            told.append(f"on {worker}")
        if (seconds := _seconds(info)) is not None:
            told.append(f"in {seconds:.1f} s")
        return " ".join(told) + (
            f": {info.reason}" if info.reason and (info.status != "completed" or info.reused_from) else ""
        )

    def _draw(self) -> None:
        if self._changing:
            counts = ", ".join(f"{number} {status}" for status, number in sorted(self._counts.items()))
            line = (
                f"{sum(self._counts.values())} of {len(self._names)} tasks have ended{': ' if counts else ''}{counts}"
            )
            self._out.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            self._out.flush()

    def _erase(self) -> None:
        if self._changing:
            self._out.write("\r\x1b[K")


def _tell_end(
    farm: Client, plan_id: str, requests: Sequence[Mapping[str, Any]], ended: Mapping[str, TaskInfo], *, as_json: bool
) -> int:
    tasks = [(str(request["name"]), ended[request["task_id"]]) for request in requests]
    excused = _excused(farm, tasks)
    code = max((code_of(info) for _, info in tasks if info.task_id not in excused), default=DONE)
    if as_json:
        print(json.dumps({"plan_id": plan_id, "exit_code": code, "tasks": [info.raw for _, info in tasks]}))
        return code
    print_table(("TASK", "STATUS", "WORKER", "SECONDS", "ATTEMPTS", "WHY"), [_row(name, info) for name, info in tasks])
    for name, info in tasks:
        if info.task_id in excused:
            print(f"dtf farm: {name} has failed, which does not count: {excused[info.task_id]}", file=sys.stderr)
    failed = [(name, info) for name, info in tasks if info.status != "completed" and info.revision]
    for name, info in failed[:HINTS]:
        print(f"dtf farm: output of {name}: dtf farm logs {info.task_id}", file=sys.stderr)
    return code


def _excused(farm: Client, tasks: Sequence[tuple[str, TaskInfo]]) -> dict[str, str]:
    """Return which tasks have failed in quarantine, and by what; of one that was in it until lately it is said."""
    from dtf_lightning.farm.verdicts.quarantine import Quarantine

    excused: dict[str, str] = {}
    known: dict[str, Quarantine] = {}
    for name, info in tasks:
        if info.status != "failed":
            continue
        project = str((info.raw.get("metadata") or {}).get("project") or "default")
        if project not in known:
            known[project] = Quarantine(farm.quarantine(project))
        if (found := known[project].of(name)) is not None:
            excused[info.task_id] = found.told
        elif (expired := known[project].expired(name)) is not None:
            print(f"dtf farm: {name} counts again: {expired.told_expired}", file=sys.stderr)
    return excused


def _row(name: str, info: TaskInfo) -> tuple[str, ...]:
    seconds = _seconds(info)
    return (
        name,
        info.status,
        str(info.raw.get("worker_id") or ""),
        "" if seconds is None else f"{seconds:.1f}",
        str((info.raw.get("metadata") or {}).get("attempt") or ""),
        info.reason if info.status != "completed" or info.reused_from else "",
    )


def _seconds(info: TaskInfo) -> float | None:
    """Return how long the attempt that counts has run."""
    start, end = info.raw.get("start_time"), info.raw.get("end_time")
    if not start or not end:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _print_submitted(plan_id: str, requests: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if not as_json:
        print(plan_id)
        return
    tasks = [{"task_id": request["task_id"], "name": request["name"]} for request in requests]
    print(json.dumps({"plan_id": plan_id, "tasks": tasks}))
