"""What the REST API takes and gives, as pydantic models: field names of `Task` and `Worker` are those of the requirements.

Times are ISO 8601 in UTC. A field that this release does not know is refused, with the nearest one that it knows.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.returned import read_told
from dtf_lightning.farm.calls.spelling import ARGUMENTS, FUNCTION, CallKind, imported, pickled
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.task_id import array_id, instance_id, is_array_id, time_of
from dtf_lightning.farm.record.values import (
    Envelope,
    TaskSpecification,
    WorkerRecord,
    WorkerState,
    YieldRequest,
)
from dtf_lightning.farm.rules.arrays import MAX_ARRAY, together
from dtf_lightning.farm.rules.gangs import MAX_GANG
from dtf_lightning.farm.rules.health import WorkerHealth
from dtf_lightning.farm.rules.inputs import MAX_INPUTS, check_place, read_input
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.submissions.fingerprint import ANY_AGE
from dtf_lightning.farm.server.lists.use import use_of
from dtf_lightning.farm.server.pool import LiveTask, Pool
from dtf_lightning.farm.server.scheduling.lending import borrowings_of

MAX_TASKS = 10_000
"""Tasks of one submission."""
MAX_COMMAND = 100_000
"""Bytes of a command with its environment: what an operating system takes is of that order."""


_SECRET = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN = "DTF_FARM_"
"""Of the variables that are the farm's own."""


class StrictModel(BaseModel):
    """A model that refuses fields which it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_nearest(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for name in data:
                if name not in cls.model_fields:
                    near = difflib.get_close_matches(str(name), cls.model_fields, 1)
                    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(cls.model_fields)}"
                    raise ValueError(f"unknown field {name!r}{hint}")
        return data


class NeedModel(StrictModel):
    """What one worker must offer: an amount for each resource."""

    amounts: dict[str, float] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    exclusive: bool = False

    @field_validator("amounts")
    @classmethod
    def _positive(cls, amounts: dict[str, float]) -> dict[str, float]:
        for resource, amount in amounts.items():
            if not (0 <= amount < 1e12):
                raise ValueError(f"the amount of {resource!r} must be a number from 0 up, got {amount!r}")
        return amounts


class RetriesModel(StrictModel):
    """How often a task is tried again, and after which ends."""

    times: int = Field(default=0, ge=0, le=100)
    on: tuple[Literal["failed", "timeout"], ...] = ()
    """None: after both. A lost worker is no fault of the task: it is tried again anyway, and that costs no try."""
    exit_codes: tuple[Annotated[int, Field(ge=1, le=255)], ...] = ()
    """Of a command that failed; none: all. 128 + n stands for signal n."""

    @model_validator(mode="after")
    def _check(self) -> RetriesModel:
        if self.exit_codes and self.on and "failed" not in self.on:
            raise ValueError("exit_codes are those of attempts that failed: name 'failed' under 'on', too")
        return self


class PickledCall(StrictModel):
    """A call of a function that was sent by cloudpickle. The farm must allow it (`security.allow_pickle`)."""

    function: str
    """Reference (`rules.inputs`) of the file with the function."""
    arguments: str
    """Reference of a file with arguments of many calls."""
    index: int = Field(ge=0)
    """Which of them are this call's, from 0."""


class TaskRequest(StrictModel):
    """A task as it is submitted: a command, or a call of a Python function."""

    task_id: str
    """Chosen by the client: a UUID of version 7."""
    type: str = "command"
    name: str = ""
    command: tuple[str, ...] = ()
    call: str = ""
    """Of a call: `package.module:function`, which the worker imports in the task's folder and environment."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)
    pickled: PickledCall | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    project: str = "default"
    plan: str = ""
    needs: tuple[NeedModel, ...] = ()
    gang: int = Field(default=1, ge=1, le=MAX_GANG)
    """Workers that run it together, each giving what it needs."""
    array: int = Field(default=0, ge=0, le=MAX_ARRAY)
    """Instances of it, or `{"count": N}`; 0: it is one task. The id of an array ends with six zeros."""
    training: int = Field(default=0, ge=0, le=MAX_GANG)
    """Its instances are the parts of one elastic training, of which it keeps so many, which start together, and the others
    give their devices to what waits for them."""
    suspend_for: int | None = None
    """Of a training: work of at least this priority, which is above its own, gets what it keeps, too. It waits then."""
    dependencies: tuple[str, ...] = ()
    """Tasks that must have completed."""
    after_any: tuple[str, ...] = ()
    """Tasks that must have ended, however."""
    priority: int = 0
    timeout: float | None = Field(default=None, gt=0)
    expires: float | None = Field(default=None, gt=0)
    retries: RetriesModel = RetriesModel()
    """A number of tries after one that failed, or `times` with what counts."""
    limits: dict[str, int] = Field(default_factory=dict)
    source: str = ""
    folder: str = ""
    inputs: dict[str, str] = Field(default_factory=dict)
    """Place in the task's folder -> reference, as `rules.inputs` has them."""
    artifacts: tuple[str, ...] = ()
    stdin: bool = False
    """Whether its standard input is sent, to `/api/tasks/{task_id}/stdin`; without, it reads nothing."""
    secrets: tuple[str, ...] = ()
    """Names of secrets, which the farm keeps for the project, or the worker has in files of its own."""
    permissions: tuple[Literal["read", "submit"], ...] = ()
    """What its command may do with the farm by a token of its own: `read` of itself and of its subtasks, `submit` such ones."""
    key: str = ""
    reuse: float = Field(default=0, ge=0, le=ANY_AGE)
    """Whether a result that is known for the same inputs is taken in the place of running it: true, or how many seconds old
    it may be."""

    @field_validator("reuse", mode="before")
    @classmethod
    def _age(cls, reuse: Any) -> Any:
        return (ANY_AGE if reuse else 0) if isinstance(reuse, bool) else reuse

    @field_validator("retries", mode="before")
    @classmethod
    def _times(cls, retries: Any) -> Any:
        return retries if isinstance(retries, Mapping | RetriesModel) else {"times": retries}

    @field_validator("array", mode="before")
    @classmethod
    def _count(cls, array: Any) -> Any:
        if not isinstance(array, Mapping):
            return array
        if set(array) != {"count"}:
            raise ValueError(f"an array is a number of instances, or {{'count': N}}, got the keys {sorted(array)}")
        return array["count"]

    @model_validator(mode="after")
    def _check(self) -> TaskRequest:
        try:
            time_of(self.task_id)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        if self.array and not is_array_id(self.task_id):
            raise ValueError(
                f"the id {self.task_id!r} of an array must end with six zeros, where the numbers of its instances stand: "
                f"such as {array_id(self.task_id)!r}"
            )
        if self.type != "command":
            raise ValueError(f"tasks of the type {self.type!r} are unknown; known is 'command'")
        given = [bool(self.command), bool(self.call), self.pickled is not None]
        if sum(given) != 1:
            raise ValueError(
                "a task is one of `command` (a program and its arguments), `call` and `pickled`; got "
                + ("several of them" if any(given) else "none of them")
            )
        if (self.args or self.kwargs) and not self.call:
            raise ValueError("`args` and `kwargs` are those of a `call`, which is not here")
        try:
            command = self.words()
        except SettingsError as error:
            raise ValueError(str(error)) from error
        pairs = (*self.environment.items(), *self.all_inputs().items())
        words = [self.key, *command, *(word for pair in pairs for word in pair)]
        if any("\0" in word for word in words):
            raise ValueError("a command and its environment cannot hold a NUL character")
        if sum(map(len, words)) > MAX_COMMAND:
            raise ValueError(
                f"the command and its environment have over {MAX_COMMAND} characters: put them into a file"
            )
        if self.folder.startswith("/") or ".." in self.folder.split("/"):
            raise ValueError(f"the folder {self.folder!r} must lie in the task's own workspace")
        if any(not name or "=" in name for name in self.environment):
            raise ValueError("a name in the environment is empty or holds '='")
        if len(self.inputs) > MAX_INPUTS:
            raise ValueError(
                f"a task has {len(self.inputs)} inputs, {MAX_INPUTS} are allowed: put them into one folder"
            )
        try:
            for place, reference in self.all_inputs().items():
                check_place(place)
                read_input(reference)
        except SettingsError as error:
            raise ValueError(str(error)) from error
        if self.stdin and self.array:
            raise ValueError("an array has no standard input: its instances are many, and there is one input")
        if self.reuse and (self.stdin or self.training):
            what = "that reads its standard input, which has no digest" if self.stdin else "that is a training"
            raise ValueError(f"`reuse` is of tasks whose inputs are all known by their digests, got it of one {what}")
        return self

    @model_validator(mode="after")
    def _check_training(self) -> TaskRequest:
        if self.training and (not self.array or self.array > MAX_GANG or self.gang > 1):
            raise ValueError(
                f"a training is an array of its parts, from 1 to {MAX_GANG}, each on one worker; got array={self.array} and "
                f"gang={self.gang}"
            )
        if self.training > self.array:
            raise ValueError(
                f"a training keeps {self.training} parts, and has {self.array}: it keeps at most all of them"
            )
        if self.suspend_for is not None and (not self.training or self.suspend_for <= self.priority):
            raise ValueError(
                f"suspend_for={self.suspend_for} is of trainings, and a priority above their own, which is {self.priority}"
            )
        return self

    @model_validator(mode="after")
    def _check_secrets(self) -> TaskRequest:
        for name in self.secrets:
            if not _SECRET.fullmatch(name) or name.startswith(OWN):
                raise ValueError(
                    f"{name!r} is no name of a secret: letters, digits and '_', as a variable has them, not {OWN}..."
                )
            if name in self.environment:
                raise ValueError(f"{name!r} is a secret and stands in the environment, too: which is meant?")
        return self

    def words(self) -> tuple[str, ...]:
        """Return the command, of a call the one that makes it. Raises `SettingsError` for a call that cannot be."""
        if self.pickled is not None:
            return pickled(self.pickled.index)
        return imported(self.call, self.args, self.kwargs) if self.call else self.command

    def all_inputs(self) -> dict[str, str]:
        """Return what lies in the task's folder, place -> reference: the inputs, and what a call needs."""
        sent = self.pickled
        return self.inputs if sent is None else self.inputs | {FUNCTION: sent.function, ARGUMENTS: sent.arguments}

    def _kind(self) -> str:
        if self.pickled is not None:
            return CallKind.PICKLE.value
        return CallKind.IMPORT.value if self.call else ""

    def specification(self, now: float) -> TaskSpecification:
        """Return what is recorded. `now`: seconds since the epoch."""
        return TaskSpecification(
            command=self.words(),
            call=self._kind(),
            project=self.project,
            plan=self.plan,
            name=self.name or self.call,
            needs=tuple(
                Need(amounts=need.amounts, labels=need.labels, exclusive=need.exclusive) for need in self.needs
            ),
            gang=self.gang,
            array=self.array,
            training=self.training,
            suspend_for=self.suspend_for,
            after=self.dependencies,
            after_any=self.after_any,
            priority=self.priority,
            timeout=self.timeout,
            expires=self.expires,
            retries=self.retries.times,
            retry_on=self.retries.on,
            retry_exit_codes=self.retries.exit_codes,
            limits=self.limits,
            source=self.source,
            folder=self.folder,
            artifacts=self.artifacts,
            environment=self.environment,
            secrets=self.secrets,
            permissions=self.permissions,
            inputs=self.all_inputs(),
            stdin=self.task_id if self.stdin else "",
            key=self.key,
            reuse=self.reuse,
            submitted=now,
        )


class Submission(StrictModel):
    """Tasks that are submitted together."""

    tasks: tuple[TaskRequest, ...] = Field(min_length=1, max_length=MAX_TASKS)
    strict: bool = False
    """Refuse all of them where no worker that is there could do one of them; else they wait, with a warning."""


def when(seconds: float | None) -> str | None:
    """Return a time as ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def live_task(live: LiveTask, *, status: str, reason: str = "") -> dict[str, Any]:
    """Return a task that is not done as the API shows it. `status`: one of `pool.LIVE_STATUSES`."""
    spec, attempt = live.specification, live.attempt
    return {
        "task_id": live.task,
        "type": "command",
        "name": spec.name,
        "status": status,
        "priority": spec.priority,
        "create_time": when(spec.submitted),
        "start_time": when(live.started),
        "end_time": None,
        "worker_id": attempt.workers[0] if attempt.workers else None,
        "parameters": {
            "command": list(spec.command),
            "environment": dict(spec.environment),
            "secrets": list(spec.secrets),
        },
        "dependencies": [*spec.after, *spec.after_any],
        "results": None,
        "error": None,
        "metadata": {
            "project": spec.project,
            "plan": spec.plan,
            "gang": spec.gang,
            **_array(spec, attempt.born),
            "workers": list(attempt.workers),
            "attempt": attempt.number,
            "revision": live.revision,
            "excluded_workers": list(attempt.excluded),
            "retry_of": spec.retry_of or None,
            "reason": reason,
        },
    }


def _array(spec: TaskSpecification, born: int) -> dict[str, Any]:
    if spec.array:
        return {"array": {"count": spec.array, "begun": born}}
    return {"array": {"id": spec.array_id, "index": spec.index}} if spec.array_id else {}


def world_of(pool: Pool, training: LiveTask) -> dict[str, Any]:
    """Return how many parts a training has, of how many that it wants, and where; who wants or got whose device."""
    running: dict[str, str] = {}
    leaving: list[dict[str, Any]] = []
    away: list[dict[str, Any]] = []
    for index in range(training.specification.array):
        part = pool.live(instance_id(training.task, index))
        if part is None:
            continue
        if not part.attempt.workers:
            if part.attempt.yielded:
                away.append({"part": part.task, "since": when(part.attempt.yielded)})
            continue
        running[part.task] = part.attempt.workers[0]
        held = pool.mirror.get(Kind.YIELD, part.task)
        if held is not None and isinstance(held.value, YieldRequest) and held.value.revision == part.revision:
            asked = {"part": part.task, "worker": part.attempt.workers[0]}
            leaving.append(asked | {"wanted_by": held.value.wanted_by, "since": when(held.value.at)})
    return {
        "minimum": training.specification.training,
        "wanted": training.specification.array,
        "running": len(running),
        "workers": running,
        "leaving": leaving,
        "away": away,
        "run": _run(pool, running),
        **_borrowings(pool, training.task),
    }


def _run(pool: Pool, running: Mapping[str, str]) -> dict[str, Any] | None:
    """Return what a training's parts have last reported of their run, and when; `None` before that. `running`: part -> worker."""
    reports = [(part, health) for part, worker in running.items() if (health := pool.health(worker)) is not None]
    told = [(health.at, health.tasks[part]) for part, health in reports if part in health.tasks]
    figures = together(figures for _, figures in told)
    return {**figures, "at": when(max(at for at, _ in told))} if figures else None


def _borrowings(pool: Pool, training: str) -> dict[str, Any]:
    told = borrowings_of(pool.mirror, training)
    latest = [
        {
            "part": one.part,
            "worker": one.worker,
            "wanted_by": one.wanted_by,
            "asked": when(one.asked),
            "left": when(one.left),
            "back": when(one.back or None),
        }
        for one in told.latest
    ]
    return {"num_borrowings": told.number, "borrowed_seconds": told.seconds, "borrowings": latest}


def done_task(task: str, envelope: Envelope) -> dict[str, Any]:
    """Return a task that is done as the API shows it."""
    return {
        "task_id": task,
        "type": "command",
        "name": envelope.name,
        "status": envelope.outcome.value,
        "priority": None,
        "create_time": when(envelope.submitted),
        "start_time": when(envelope.started),
        "end_time": when(envelope.ended),
        "worker_id": envelope.workers[0] if envelope.workers else None,
        "parameters": {"command": list(envelope.command)},
        "dependencies": [],
        "results": {
            "exit_code": envelope.exit_code,
            "kind": envelope.kind,
            "metrics": _without_nan(envelope.metrics),
            "counts": dict(envelope.counts),
            "artifacts": dict(envelope.artifacts),
            "missing": list(envelope.missing),
            "log_bytes": envelope.log_bytes,
            "tail": envelope.tail,
            "returned": read_told(envelope.returned) or None,
        },
        "error": None if envelope.outcome.value == "completed" else envelope.reason,
        "metadata": {
            "project": envelope.project,
            "plan": envelope.plan,
            "gang": max(len(envelope.workers), 1),
            "workers": list(envelope.workers),
            "attempt": envelope.attempt,
            "revision": envelope.revision,
            "retry_of": envelope.retry_of or None,
            "reused_from": envelope.reused_from or None,
            "reason": envelope.reason,
        },
    }


def whole_task(task: str, envelope: Envelope) -> dict[str, Any]:
    """Return a task that is done as the API shows it by itself: with what it had asked for, and what it used."""
    told = done_task(task, envelope)
    told["metadata"] |= use_of(envelope)
    return told


def _without_nan(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN and no infinity (RFC 8259, section 6): they are null, as in `/api/results`."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def worker(
    name: str, record: WorkerRecord, tasks: list[str], connected: bool, health: WorkerHealth | None = None
) -> dict[str, Any]:
    """Return a worker as the API shows it."""
    if not connected:
        status = WorkerState.OFFLINE.value
    elif record.state is WorkerState.ONLINE and tasks:
        status = WorkerState.BUSY.value
    else:
        status = record.state.value
    return {
        "worker_id": name,
        "status": status,
        "hardware_id": record.host,
        "capabilities": {"devices": dict(record.devices), "labels": list(record.labels)},
        "current_task": tasks[0] if tasks else None,
        "last_seen": when(health.at) if health is not None else None,
        "health_status": health.status.value if health is not None else None,
        "performance_metrics": {**health.metrics} if health is not None else {},
        "metadata": {
            "health": health.reason if health is not None else "",
            "tasks": tasks,
            "coordinator": record.coordinator,
            "cordoned": record.cordoned,
            "cordoned_for": record.cordoned_for or None,
        },
    }
