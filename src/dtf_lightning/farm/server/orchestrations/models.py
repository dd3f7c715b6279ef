"""What is asked of a job that is split over devices, by the names of the requirements; and the task of each of its shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.dividing import PIECES
from dtf_lightning.farm.orchestrate.merging import Rule, read_rule
from dtf_lightning.farm.orchestrate.splitting import Job, Share, Strategy
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.task_id import paired_task_id
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.server.models import NeedModel, StrictModel, TaskRequest

MAX_ASKED = 256 * 1024
"""Bytes of what is asked for: it stands in the farm's record, which is written anew with each subtask that ends."""
MAX_INPUTS = 10**12
MERGE = "merge"
"""Key of the subtask that calls a function of one's own to merge."""
SHARE = "DTF_FARM_SUBTASK"
"""Variable that tells a command its share, as JSON; `DTF_FARM_SUBTASK_BEGIN` and so on tell its parts."""


class TaskData(StrictModel):
    """What each subtask does, and what of it can be divided. What is not divided is given whole to each."""

    type: str = "job"
    """A word for people, such as "benchmark"."""
    name: str = ""
    command: tuple[str, ...] = ()
    """Is told its share by `$DTF_FARM_SUBTASK`; what it reports as metrics is merged."""
    call: str = ""
    """`package.module:function`: is given its share as arguments by name; what it returns is merged."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = Field(default_factory=dict)
    model_name: str = ""
    """Given to each as `model_name`."""
    inputs: int | list[Any] = Field(default=0)
    """How many there are (`begin` and `end` say which), or the inputs themselves (`inputs`)."""
    functions: tuple[str, ...] = ()
    """Words, each given as `function`; or `package.module:function`, each called itself."""
    models: tuple[str, ...] = ()
    """Each given as `model`."""
    devices: tuple[str, ...] = ()
    """Labels of workers, on each of which the same is done."""
    pieces: int = Field(default=PIECES, ge=1, le=100)
    """Shares of the inputs for each device."""
    project: str = "default"
    environment: dict[str, str] = Field(default_factory=dict)
    needs: tuple[NeedModel, ...] = ()
    """Of each subtask."""
    limits: dict[str, int] = Field(default_factory=dict)
    source: str = ""
    folder: str = ""
    files: dict[str, str] = Field(default_factory=dict)
    """Place in a subtask's folder -> reference, as `inputs` of a task."""
    artifacts: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    """Tasks that must have completed before any subtask begins."""
    after_any: tuple[str, ...] = ()

    @field_validator("inputs")
    @classmethod
    def _some(cls, inputs: int | list[Any]) -> int | list[Any]:
        if isinstance(inputs, int) and not 0 <= inputs <= MAX_INPUTS:
            raise ValueError(f"a number of inputs is from 0 to {MAX_INPUTS}, got {inputs}")
        return inputs

    @model_validator(mode="after")
    def _check(self) -> TaskData:
        called = bool(self.functions) and all(":" in name for name in self.functions)
        if any(":" in name for name in self.functions) and not called:
            raise ValueError(
                "functions: words that one `call` is given, or package.module:function that are called; not both"
            )
        if called and (self.call or self.command):
            raise ValueError(
                "functions that are called themselves (package.module:function) stand in the place of `call`"
            )
        if not called and bool(self.call) == bool(self.command):
            raise ValueError(
                "say what each subtask does: `call` (package.module:function) or `command` (a program and its arguments)"
            )
        return self

    @property
    def num_inputs(self) -> int:
        """How many inputs there are."""
        return self.inputs if isinstance(self.inputs, int) else len(self.inputs)

    @property
    def job(self) -> Job:
        """What can be divided."""
        return Job(
            num_inputs=self.num_inputs,
            functions=self.functions,
            models=self.models,
            devices=self.devices,
            pieces=self.pieces,
        )

    @property
    def title(self) -> str:
        """What the job is called."""
        return self.name or self.call or (self.command[0] if self.command else self.type)

    @property
    def alternatives(self) -> tuple[Need, ...]:
        """What a subtask needs."""
        return tuple(Need(amounts=one.amounts, labels=one.labels, exclusive=one.exclusive) for one in self.needs)


class OrchestrateRequest(StrictModel):
    """A job that is to be split over devices."""

    task_id: str = ""
    """A UUID of version 7, chosen by the client: asked again with the same, it is one job. Without it one is made."""
    task_data: TaskData
    strategy: Strategy = Strategy.AUTO
    merge: Any = None
    """A rule of `orchestrate.merging`, by its name or with options; without it `concatenate` for inputs, else `join`."""
    priority: int | None = None
    """Without it `default_priority` of the farm's settings; as are the next ones."""
    subtask_timeout: float | None = Field(default=None, gt=0)
    retry_limit: int | None = Field(default=None, ge=0, le=100)
    retry_failed_subtasks: bool | None = None
    """Whether a failed subtask is tried again elsewhere, and then its share of inputs cut into smaller ones."""
    strict: bool = False
    """Refuse it where no worker that is there could do a subtask; else it waits."""

    @model_validator(mode="after")
    def _check(self) -> OrchestrateRequest:
        try:
            if self.merge is not None:
                read_rule(self.merge)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        if len(asked_of(self)) > MAX_ASKED:
            raise ValueError(
                f"what is asked for has over {MAX_ASKED} bytes: put the inputs into a file that each subtask gets (`files`), and say "
                "how many there are (`inputs: 1000`)"
            )
        return self


def asked_of(request: OrchestrateRequest) -> str:
    """Return what is recorded of a request: equal for equal ones."""
    body = request.model_dump(mode="json", exclude_defaults=True, exclude={"task_id", "strict"})
    return json.dumps(body, sort_keys=True, separators=(",", ":"))


def request_of(record: OrchestrationRecord) -> OrchestrateRequest:
    """Return what was asked for."""
    return OrchestrateRequest.model_validate_json(record.asked)


def rule_of(record: OrchestrationRecord, request: OrchestrateRequest) -> Rule:
    """Return how its results are merged."""
    if request.merge is not None:
        return read_rule(request.merge)
    return Rule(how="concatenate" if record.strategy is Strategy.DATA_PARALLEL else "join")


def subtask_id(job: str, key: str) -> str:
    """Return the id of the task of a share, by its key."""
    return paired_task_id(job, key)


def subtask_of(job: str, record: OrchestrationRecord, data: TaskData, share: Share) -> TaskRequest:
    """Return the task of a share. Raises `ValueError` for one that cannot be."""
    told = told_of(data, share)
    function = share.function if ":" in share.function else ""
    call = function or data.call
    kwargs = {**data.kwargs, **told} if call else {}
    return _request(
        job, record, data, share.key, f"{record.name}[{share.name}]", call, kwargs, _needs(data, share), told
    )


def merge_of(
    job: str, record: OrchestrationRecord, data: TaskData, call: str, parts: list[dict[str, Any]]
) -> TaskRequest:
    """Return the task that merges by a function of one's own. Raises `ValueError` for one that cannot be."""
    return _request(job, record, data, MERGE, f"{record.name}[{MERGE}]", call, {"parts": parts}, data.needs, {})


def told_of(data: TaskData, share: Share) -> dict[str, Any]:
    """Return what a subtask is told: its share, and whole what is not divided."""
    told: dict[str, Any] = {"model_name": data.model_name} if data.model_name else {}
    if data.inputs:
        begin, end = (share.begin, share.end) if share.end else (0, data.num_inputs)
        told |= {"begin": begin, "end": end} if isinstance(data.inputs, int) else {"inputs": data.inputs[begin:end]}
    if share.function:
        told |= {} if ":" in share.function else {"function": share.function}
    elif data.functions:
        told["functions"] = list(data.functions)
    if share.model:
        told["model"] = share.model
    elif data.models:
        told["models"] = list(data.models)
    return told


def _request(
    job: str,
    record: OrchestrationRecord,
    data: TaskData,
    key: str,
    name: str,
    call: str,
    kwargs: Mapping[str, Any],
    needs: tuple[NeedModel, ...],
    told: Mapping[str, Any],
) -> TaskRequest:
    return TaskRequest.model_validate(
        {
            "task_id": subtask_id(job, key),
            "name": name,
            **({"call": call, "args": data.args, "kwargs": kwargs} if call else {"command": data.command}),
            "environment": data.environment if call else {**data.environment, **_variables(told)},
            "project": record.project,
            "plan": record.plan or job,
            "needs": needs,
            "priority": record.priority,
            "timeout": record.timeout,
            "retries": record.retries,
            "limits": data.limits,
            "source": data.source,
            "folder": data.folder,
            "inputs": data.files,
            "artifacts": data.artifacts,
            "secrets": data.secrets,
            "dependencies": data.dependencies,
            "after_any": data.after_any,
        }
    )


def _variables(told: Mapping[str, Any]) -> dict[str, str]:
    parts = {f"{SHARE}_{name.upper()}": str(value) for name, value in told.items() if isinstance(value, str | int)}
    return {SHARE: json.dumps(told, separators=(",", ":")), **parts}


def _needs(data: TaskData, share: Share) -> tuple[NeedModel, ...]:
    """What a subtask needs: of an ensemble over devices a label, else rather a worker with the label than another."""
    if not share.label:
        return data.needs
    alternatives = data.needs or (NeedModel(amounts={"cpu": 1}),)
    labelled = tuple(one.model_copy(update={"labels": (*one.labels, share.label)}) for one in alternatives)
    return labelled if share.label in data.devices else (*labelled, *alternatives)
