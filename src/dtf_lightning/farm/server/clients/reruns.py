"""Running a task that is done once more to find out why it ended as it did: on other workers, with other code or variables.

Rules that this file guards:
- A rerun is a task of its own: it has no plan, no key, nothing comes after it, and it is tried once.
- Code and variables come from a task of the same project only.
- It has another name than the test: what a rerun gave is no part of the test's history.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from dtf_lightning.clock import Clock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.record.task_id import time_of
from dtf_lightning.farm.record.values import Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import Wanted
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.models import StrictModel, when
from dtf_lightning.farm.server.tasks import Tasks, UnknownTask

NEWEST = 200
"""Earlier runs that are looked at."""
MAX_AVOIDED = 1000
_OWN_FAULT = (OutcomeKind.FAILED.value, OutcomeKind.TIMEOUT.value)
PREFIX = "blame: "
"""Of the name of a rerun."""


class RerunRequest(StrictModel):
    """How a task is run once more."""

    task_id: str
    """Of the rerun, chosen by the client: a UUID of version 7. Asked again with the same, it runs once."""
    avoid: tuple[str, ...] = Field(default=(), max_length=MAX_AVOIDED)
    """Workers that are not to run it while others can."""
    code_of: str = ""
    """Id of a task whose code it runs: source and inputs; "": its own."""
    source: str = ""
    """Digest of an archive that takes the place of its own."""
    variables_of: str = ""
    """Id of a task whose environment it has; "": its own."""


@dataclass(frozen=True, kw_only=True)
class _Earlier:
    """A run of the same test."""

    task: str
    passed: bool
    worker: str
    asked: TaskSpecification | None


class TaskReruns:
    """Runs on the coordinator's event loop."""

    def __init__(self, tasks: Tasks, history: History, clock: Clock) -> None:
        self._tasks = tasks
        self._history = history
        self._clock = clock

    async def past(self, task: str) -> dict[str, Any]:
        """Return what is known of a test beside the result that `task` is.

        `attempts`: of the task itself, the earliest first. `base`: the last earlier run that passed, of the same code if there is
        one, else of code that the farm still has. `passed`, `failed`: earlier runs; of those that failed only the ones of
        code that passed, too: the others may have been the code's fault. Raises as `_asked`.
        """
        envelope, asked = await self._asked(task)
        earlier = await asyncio.to_thread(self._earlier, task, envelope)
        flips = {_code(one.asked) for one in earlier if one.passed and one.asked is not None}
        base = self._base(earlier, asked)
        return {
            "task_id": task,
            "name": envelope.name or " ".join(envelope.command),
            "has_code": _has_code(asked),
            "attempts": await asyncio.to_thread(self._attempts, task, envelope),
            "passed": sum(one.passed for one in earlier),
            "failed": sum(not one.passed and one.asked is not None and _code(one.asked) in flips for one in earlier),
            "base": None if base is None or base.asked is None else {
                "task_id": base.task,
                "worker_id": base.worker,
                "create_time": when(time_of(base.task)),
                "same_code": _code(base.asked) == _code(asked),
                "changed_variables": _changed(asked.environment, base.asked.environment),
            },
        }  # fmt: skip

    async def rerun(self, task: str, wanted: RerunRequest) -> dict[str, Any]:
        """Submit a rerun. Raises as `_asked`, `SettingsError` for tasks of another project, and what `Tasks.accept` raises."""
        envelope, asked = await self._asked(task)
        if asked.array or asked.gang > 1:
            what = "an array: name one of its instances, as ID[N]" if asked.array else "run by several workers together"
            raise SettingsError(f"task {task} is {what}; a task of one worker can be run once more")
        if wanted.code_of and wanted.source:
            raise SettingsError(
                "a rerun has the code of one task (`code_of`) or of one archive (`source`), not of both"
            )
        rerun = replace(
            asked,
            name=PREFIX + (envelope.name or " ".join(envelope.command)), plan="", key="", after=(), after_any=(), retries=0,
            array_id="", training=0, expires=None, retry_of="", reuse=0.0, avoid=wanted.avoid, submitted=self._clock.wall(),
        )  # fmt: skip
        if wanted.code_of:
            other = await self._of_project(wanted.code_of, asked.project)
            rerun = replace(rerun, source=other.source, folder=other.folder, inputs=other.inputs)
        if wanted.source:
            rerun = replace(rerun, source=wanted.source)
        if wanted.variables_of:
            other = await self._of_project(wanted.variables_of, asked.project)
            rerun = replace(rerun, environment=other.environment)
        (told,) = await self._tasks.accept({wanted.task_id: rerun})
        return told

    async def _of_project(self, task: str, project: str) -> TaskSpecification:
        _, asked = await self._asked(task)
        if asked.project != project:
            raise SettingsError(f"task {task} is of another project: its code and variables are not taken")
        return asked

    async def _asked(self, task: str) -> tuple[Envelope, TaskSpecification]:
        """Raises `UnknownTask`, and `SettingsError` for a task that is not done, or of which too little is kept."""
        envelope = await self._tasks.envelope(task)
        if envelope is None:
            if (await self._tasks.task(task))["status"] not in {outcome.value for outcome in TaskOutcome}:
                raise SettingsError(f"task {task} has not ended: only what has ended can be run once more")
            raise UnknownTask(f"nothing is kept of task {task} but how it ended")
        asked = unpack(envelope.asked)
        if asked is None:
            raise SettingsError(f"what task {task} was asked for was too large to keep, or an older release ran it")
        return envelope, asked

    def _earlier(self, task: str, envelope: Envelope) -> list[_Earlier]:
        """Runs of the same test that were submitted before this one, the newest first. Ids carry their time."""
        rows = self._history.alike(envelope.project, envelope.name, envelope.command, NEWEST)
        return [
            _Earlier(
                task=name,
                passed=outcome == TaskOutcome.COMPLETED.value,
                worker=workers[0] if workers else "",
                asked=unpack(text),
            )
            for name, outcome, kind, workers, text in rows
            if name < task and (outcome == TaskOutcome.COMPLETED.value or kind in _OWN_FAULT)
        ]

    def _attempts(self, task: str, envelope: Envelope) -> list[dict[str, Any]]:
        """The task's attempts that ended by themselves: those that a lost worker ended tell nothing of the test."""
        rows = self._history.page(Wanted(task=task), limit=1)
        earlier = rows[0]["failed_attempts"] if rows else []
        told = [
            {"worker_id": one["workers"][0], "failed": True, "reason": one["reason"]}
            for one in earlier
            if one["workers"] and one["reason"].startswith(("exit code ", "ended by "))
        ]
        if envelope.workers and (envelope.outcome is TaskOutcome.COMPLETED or envelope.kind in _OWN_FAULT):
            failed = envelope.outcome is not TaskOutcome.COMPLETED
            told.append({"worker_id": envelope.workers[0], "failed": failed, "reason": envelope.reason})
        return told

    def _base(self, earlier: Sequence[_Earlier], asked: TaskSpecification) -> _Earlier | None:
        passed = [one for one in earlier if one.passed and one.asked is not None and _has_code(one.asked)]
        same = [one for one in passed if one.asked is not None and _code(one.asked) == _code(asked)]
        there = [one for one in passed if one.asked is not None and self._is_here(one.asked)]
        return next(iter([*same, *there]), None) if _has_code(asked) else None

    def _is_here(self, asked: TaskSpecification) -> bool:
        return all(self._tasks.files.source(digest) is not None for digest in asked.stored)


def _has_code(asked: TaskSpecification) -> bool:
    """Whether code came with the task; else it lies on its workers, and nobody here knows which it was."""
    return bool(asked.source or asked.inputs)


def _code(asked: TaskSpecification) -> str:
    """Names what a task ran."""
    told = (asked.source, asked.folder, sorted(asked.inputs.items()), asked.command)
    return hashlib.sha256(repr(told).encode(errors="surrogatepass")).hexdigest()


def _changed(now: Any, before: Any) -> list[str]:
    return sorted(name for name in {**now, **before} if now.get(name) != before.get(name))
