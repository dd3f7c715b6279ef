"""The keys of a plan: one table, from which the reader and the published JSON Schema are made.

A key's `read` returns what its value means, or raises `SettingsError` with the place; its `schema` says the same to an
editor as far as JSON Schema goes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.calls import arguments, function, named_arguments
from dtf_lightning.farm.plans.cron import times_of
from dtf_lightning.farm.plans.matrix import read_matrix
from dtf_lightning.farm.plans.orchestrating import SCHEMA as ORCHESTRATE_SCHEMA
from dtf_lightning.farm.plans.orchestrating import orchestrated
from dtf_lightning.farm.plans.plan import PlanSchedule
from dtf_lightning.farm.rules.arrays import MAX_ARRAY
from dtf_lightning.farm.rules.attempts import RETRIED_ON
from dtf_lightning.farm.rules.gangs import MAX_GANG
from dtf_lightning.farm.rules.inputs import check_place, is_local, read_input
from dtf_lightning.farm.rules.needs import DEFAULT_NEED, Need
from dtf_lightning.farm.rules.submissions.fingerprint import ANY_AGE
from dtf_lightning.farm.rules.submissions.schedules import Overlap
from dtf_lightning.farm.trainings.launch import read_workers
from dtf_lightning.settings.durations import DURATION_PATTERN, seconds_of
from dtf_lightning.settings.marked_yaml import Node, nearest

MAX_RETRIES = 100
MAX_AMOUNT = 1e12


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key of a plan or of a task."""

    meaning: str
    read: Callable[[Node, str], Any]
    """Of the value's node and the key's name."""
    schema: Mapping[str, Any]
    default: bool = True
    """Whether it may stand under `defaults`."""


# --- readers ---------------------------------------------------------------------------------------------------------


def text(node: Node, what: str) -> str:
    """Return a text that is not empty."""
    told = node.scalar(what)
    if not told.strip():
        raise node.error(f"{what} is empty")
    return told


def whole(low: int, high: int) -> Callable[[Node, str], int]:
    """Return a reader of whole numbers from `low` to `high`."""

    def read(node: Node, what: str) -> int:
        if isinstance(node.value, bool) or not isinstance(node.value, int) or not low <= node.value <= high:
            raise node.error(f"{what} is a whole number from {low} to {high}, got {node.kind}")
        return node.value

    return read


def number(node: Node, what: str) -> float:
    """Return an amount of a resource."""
    value = node.value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_AMOUNT:
        raise node.error(f"{what} is a number from 0 up, got {node.kind}")
    return float(value)


def truth(node: Node, what: str) -> bool:
    """Return a yes or no."""
    if not isinstance(node.value, bool):
        raise node.error(f"{what} is true or false, got {node.kind}")
    return node.value


def duration(node: Node, what: str) -> float:
    """Return seconds: a number of them, or a text such as `90s`, `5m` or `1h30m`."""
    value = node.value
    if isinstance(value, str):
        value = seconds_of(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise node.error(
            f"{what} is a number of seconds above 0, or a text such as '90s', '5m', '1h30m'; got {node.kind}"
        )
    return float(value)


def reuse(node: Node, what: str) -> float:
    """Return how old, in seconds, a result may be: a yes or no, or a duration."""
    if isinstance(node.value, bool):
        return ANY_AGE if node.value else 0.0
    return min(duration(node, what), ANY_AGE)


def texts(node: Node, what: str) -> tuple[str, ...]:
    """Return one text, or a list of them."""
    if isinstance(node.value, list):
        return tuple(text(one, f"each of {what}") for one in node.value)
    return (text(node, what),)


def command(node: Node, what: str) -> tuple[tuple[Node, str], ...]:
    """Return the words of a command with their nodes: a shell's, or those of a list."""
    if not isinstance(node.value, list):
        return ((node, "sh"), (node, "-ec"), (node, text(node, what)))
    if not node.value:
        raise node.error(f"{what} is a shell line, or a list of a program and its arguments; got an empty list")
    return tuple((one, one.scalar(f"each word of {what}")) for one in node.value)


def environment(node: Node, what: str) -> dict[str, tuple[Node, str]]:
    """Return variables with their nodes."""
    for name in node.mapping(what):
        if not name or "=" in name or "\0" in name:
            raise node.keys[name].error(f"{name!r} is no name of a variable")
    return {name: (one, one.scalar(f"the variable {name!r}")) for name, one in node.value.items()}


def secrets(node: Node, what: str) -> tuple[str, ...]:
    """Return names of secrets."""
    for one in node.value if isinstance(node.value, list) else [node]:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name := text(one, f"each of {what}")):
            raise one.error(f"{name!r} is no name of a secret: letters, digits and '_', as a variable has them")
    return texts(node, what)


PERMISSIONS = ("read", "submit")


def permissions(node: Node, what: str) -> tuple[str, ...]:
    """Return what a task may do with the farm."""
    for one in node.value if isinstance(node.value, list) else [node]:
        if (name := text(one, f"each of {what}")) not in PERMISSIONS:
            raise one.error(f"{name!r} is nothing that a task may be allowed: expected {' or '.join(PERMISSIONS)}")
    return texts(node, what)


def inputs(node: Node, what: str) -> dict[str, str]:
    """Return place -> reference; one without a scheme is a path."""
    found = {}
    for place, one in node.mapping(what).items():
        reference = text(one, f"{what} {place!r}")
        try:
            check_place(place)
        except SettingsError as error:
            raise node.keys[place].error(str(error)) from None
        try:
            if not is_local(reference):
                read_input(reference)
        except SettingsError as error:
            raise one.error(str(error)) from None
        found[place] = reference
    return found


def amounts(node: Node, what: str) -> dict[str, float]:
    """Return resource -> amount."""
    return {name: number(one, f"the amount of {name!r}") for name, one in node.mapping(what).items()}


def needs(node: Node, what: str) -> tuple[Need, ...]:
    """Return the alternatives: one mapping of amounts, or a list of mappings with `amounts`, `labels`, `exclusive`."""
    if not isinstance(node.value, list):
        return (Need(amounts=amounts(node, what)),)
    if not node.value:
        raise node.error(f"{what} is an empty list: leave it out, or name at least one alternative")
    found = []
    for one in node.value:
        one.refuse_unknown(ALTERNATIVE_KEYS, f"an alternative of {what}")
        told = {name: ALTERNATIVE_KEYS[name].read(part, name) for name, part in one.value.items()}
        found.append(Need(**{"amounts": DEFAULT_NEED.amounts, **told}))
    return tuple(found)


def limits(node: Node, what: str) -> dict[str, int]:
    """Return name -> number."""
    return {name: whole(1, 1_000_000)(one, f"{what} of {name!r}") for name, one in node.mapping(what).items()}


def after(node: Node, what: str) -> dict[str, tuple[Node, bool]]:
    """Return entry -> its node, and whether any end of it will do."""
    if isinstance(node.value, dict):
        found = {}
        for name, one in node.value.items():
            told = one.scalar(f"{what} {name!r}")
            if told not in ENDS:
                raise one.error(f"{what} {name!r} is one of {', '.join(ENDS)}, got {told!r}{nearest(told, ENDS)}")
            found[name] = (Node(name, name, node.keys[name]), told == "any")
        return found
    found = {}
    for one in node.value if isinstance(node.value, list) else [node]:
        name = text(one, what)
        if name in found:
            raise one.error(f"{name!r} stands here twice")
        found[name] = (one, False)
    return found


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a task is tried again, and after which ends; none named: after all."""

    times: int = 0
    on: tuple[str, ...] = ()
    exit_codes: tuple[int, ...] = ()


def retries(node: Node, what: str) -> Retries:
    """Return a number of tries, or a mapping with `times`, `on` and `exit_codes`."""
    if not isinstance(node.value, dict):
        return Retries(times=whole(0, MAX_RETRIES)(node, what))
    node.refuse_unknown(RETRY_KEYS, what)
    if "times" not in node.value:
        raise node.error(f"{what} says how many by `times`")
    told = Retries(**{name: RETRY_KEYS[name].read(one, name) for name, one in node.value.items()})
    if told.exit_codes and told.on and "failed" not in told.on:
        raise node.value["exit_codes"].error(
            "exit codes are those of attempts that failed: name `failed` under `on`, too"
        )
    return told


def retried_on(node: Node, what: str) -> tuple[str, ...]:
    """Return kinds of ends."""
    for one in node.value if isinstance(node.value, list) else [node]:
        if (told := text(one, what)) not in RETRIED_ON:
            hint = "; a lost worker costs no try" if "lost" in told else nearest(told, RETRIED_ON)
            raise one.error(f"{what} is one of {', '.join(RETRIED_ON)}, got {told!r}{hint}")
    return texts(node, what)


def exit_codes(node: Node, what: str) -> tuple[int, ...]:
    """Return exit codes of commands that failed."""
    return tuple(whole(1, 255)(one, f"each of {what}") for one in node.sequence(what))


def array(node: Node, what: str) -> int:
    """Return a number of instances, that stands for itself or as `{count: N}`."""
    if isinstance(node.value, dict):
        node.refuse_unknown(("count",), what)
        if "count" not in node.value:
            raise node.error(f"{what} is a number of instances, or has `count: N`")
        return whole(1, MAX_ARRAY)(node.value["count"], f"the count of {what}")
    return whole(1, MAX_ARRAY)(node, what)


def folder(node: Node, what: str) -> str:
    """Return a relative folder; "" for where the plan was started."""
    told = text(node, what)
    if told.startswith("/") or ".." in told.split("/"):
        raise node.error(f"{what} {told!r} must lie below where the plan is started, without '..'")
    return "/".join(part for part in told.split("/") if part not in ("", "."))


def schedule(node: Node, what: str) -> PlanSchedule:
    """Return when a plan is submitted: by a cron expression, or a mapping with `cron`, `timezone` and `overlap`."""
    told: dict[str, Any] = {}
    if isinstance(node.value, dict):
        node.refuse_unknown(SCHEDULE_KEYS, what)
        if "cron" not in node.value:
            raise node.error(f"{what} says when by `cron`, such as '30 2 * * 1-5'")
        told = {name: SCHEDULE_KEYS[name].read(one, name) for name, one in node.value.items()}
    else:
        told["cron"] = text(node, what)
    found = PlanSchedule(**told)
    try:
        times_of(found.cron, found.timezone)
    except SettingsError as error:
        raise node.error(f"{what}: {error}") from None
    return found


def overlap(node: Node, what: str) -> Overlap:
    """Return what is done at a time at which the last run goes on."""
    told = text(node, what)
    known = [one.value for one in Overlap]
    if told not in known:
        raise node.error(f"{what} is one of {', '.join(known)}, got {told!r}{nearest(told, known)}")
    return Overlap(told)


def workers(node: Node, what: str) -> tuple[int, int]:
    """Return the least and the most parts of a training."""
    try:
        return read_workers(node.scalar(what))
    except SettingsError as error:
        raise node.error(str(error)) from None


def arguments_of_script(node: Node, what: str) -> tuple[tuple[Node, str], ...]:
    """Return words with their nodes."""
    return tuple((one, one.scalar(f"each of {what}")) for one in node.sequence(what))


def rendezvous_options(node: Node, what: str) -> dict[str, str]:
    """Return option -> value, as `--rdzv-conf` takes them."""
    found = {name: one.scalar(f"{what} {name!r}") for name, one in node.mapping(what).items()}
    for name, value in found.items():
        if "," in value or not name or set(name) & set(",="):
            raise node.keys[name].error(f"{what} {name!r}: names have no ',' and no '=', values no ','")
    return found


def training(node: Node, what: str) -> dict[str, Any]:
    """Return what a training is made of."""
    node.refuse_unknown(TRAIN_KEYS, what)
    for name in TRAIN_REQUIRED:
        if name not in node.value:
            raise node.error(f"{what} has no `{name}`: {TRAIN_KEYS[name].meaning}")
    return {name: TRAIN_KEYS[name].read(one, name) for name, one in node.value.items()}


# --- the tables ------------------------------------------------------------------------------------------------------

ENDS = ("success", "any")
_TEXT = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 1, "maximum": MAX_ARRAY}
_TIMES = {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES}
_SCALAR = {"type": ["string", "number", "boolean"]}
_TEXTS = {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]}
_AMOUNTS = {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
_DURATION_SCHEMA = {
    "oneOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": DURATION_PATTERN}]
}
_CELLS = {"type": "array", "items": {"type": "object", "minProperties": 1, "additionalProperties": _SCALAR}}


def object_schema(keys: Mapping[str, Key], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the JSON Schema of a mapping with these keys."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": {name: {"description": key.meaning, **key.schema} for name, key in keys.items()},
    }


ALTERNATIVE_KEYS = {
    "amounts": Key(meaning="Resource and how much of it; without it one core.", read=amounts, schema=_AMOUNTS),
    "labels": Key(meaning="Labels that the worker must carry.", read=texts, schema=_TEXTS),
    "exclusive": Key(
        meaning="Whether nothing else may run on the worker meanwhile.", read=truth, schema={"type": "boolean"}
    ),
}

RETRY_KEYS = {
    "times": Key(meaning="How many.", read=whole(0, MAX_RETRIES), schema=_TIMES),
    "on": Key(
        meaning="After which ends: `failed`, `timeout`.",
        read=retried_on,
        schema={"oneOf": [{"enum": list(RETRIED_ON)}, {"type": "array", "items": {"enum": list(RETRIED_ON)}}]},
    ),
    "exit_codes": Key(
        meaning="Of a command that failed, those that count; without it all. 128 + n is signal n.",
        read=exit_codes,
        schema={"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 1, "maximum": 255}},
    ),
}

SCHEDULE_KEYS = {
    "cron": Key(
        meaning="Minute, hour, day of the month, month and day of the week, such as `30 2 * * 1-5`.",
        read=text,
        schema=_TEXT,
    ),
    "timezone": Key(
        meaning="In which these are meant, such as `Europe/Berlin`; without it UTC.", read=text, schema=_TEXT
    ),
    "overlap": Key(
        meaning="At a time at which the last run still goes on: `skip` (as without it), or `queue`: one more when that has ended.",
        read=overlap,
        schema={"enum": [one.value for one in Overlap]},
    ),
}

TRAIN_KEYS = {
    "script": Key(
        meaning="A Lightning script with `ElasticCallback()`, a path in the task's folder.",
        read=lambda node, what: (node, text(node, what)),
        schema=_TEXT,
    ),
    "args": Key(meaning="Of the script.", read=arguments_of_script, schema={"type": "array", "items": _SCALAR}),
    "workers": Key(
        meaning="`MIN:MAX`: parts that it keeps, and at most has; without it 1:1.",
        read=workers,
        schema={"type": "string", "pattern": r"^[0-9]+:[0-9]+$"},
    ),
    "endpoint": Key(
        meaning="Of the etcd at which its parts meet, as every worker reaches it, such as `etcd.lab:2379`.",
        read=text,
        schema=_TEXT,
    ),
    "suspend_for": Key(
        meaning="Priority, above its own, from which on work gets what it keeps, too: the training waits then, with its state in "
        "the run's folder, which all workers must reach. Without it it keeps its minimum.",
        read=whole(-(10**9), 10**9),
        schema={"type": "integer"},
    ),
    "python": Key(meaning="That the workers have; without it `python`.", read=text, schema=_TEXT),
    "options": Key(
        meaning="Of the rendezvous, as in torchrun's `--rdzv-conf`.",
        read=rendezvous_options,
        schema={"type": "object", "additionalProperties": _SCALAR},
    ),
}
TRAIN_REQUIRED = ("script", "endpoint")

TASK_KEYS = {
    "run": Key(
        meaning="A shell line (`sh -ec`: it ends with the first command that fails), or a list of a program and its "
        "arguments.",
        read=command,
        schema={"oneOf": [_TEXT, {"type": "array", "minItems": 1, "items": _SCALAR}]},
        default=False,
    ),
    "call": Key(
        meaning="In the place of `run`: a Python function, `package.module:function`, that the worker's Python imports in the "
        "task's folder and environment, and calls.",
        read=function,
        schema={"type": "string", "pattern": r"^[\w.]+:[\w.]+$"},
        default=False,
    ),
    "args": Key(
        meaning="Of a call: its arguments, in order; texts, numbers, lists and mappings. One that is `{{matrix.AXIS}}` and "
        "nothing more is what YAML reads there, such as a number.",
        read=arguments,
        schema={"type": "array"},
        default=False,
    ),
    "kwargs": Key(
        meaning="Of a call: its arguments by their names.",
        read=named_arguments,
        schema={"type": "object"},
        default=False,
    ),
    "train": Key(
        meaning="In the place of `run`: an elastic training that fills idle devices and gives them back to what waits. `script`, "
        "`args`, `workers: MIN:MAX`, `endpoint` of the etcd at which its parts meet, `python`, `options` of the rendezvous, `suspend_for`. Each "
        "part gets what it `needs`.",
        read=training,
        schema=object_schema(TRAIN_KEYS, TRAIN_REQUIRED),
        default=False,
    ),
    "orchestrate": Key(
        meaning="Makes it a job that is split over devices: `inputs`, `functions`, `models` or `devices` are divided by a `strategy`, and what "
        "the subtasks give becomes one by `merge`. `retries` and `timeout` are those of each subtask.",
        read=orchestrated,
        schema=ORCHESTRATE_SCHEMA,
        default=False,
    ),
    "name": Key(
        meaning="What the task is called; with a matrix it tells its instances apart. Without it: the key, and the "
        "matrix's values in brackets.",
        read=text,
        schema=_TEXT,
        default=False,
    ),
    "needs": Key(
        meaning="What one worker must offer: resource and amount (`cpu` cores, `memory` in MiB, `gpu`, ...); or a list of "
        "alternatives, the best first. Without it one core.",
        read=needs,
        schema={"oneOf": [_AMOUNTS, {"type": "array", "minItems": 1, "items": object_schema(ALTERNATIVE_KEYS)}]},
    ),
    "gang": Key(
        meaning="How many workers run it together, each giving what it `needs`; its command finds out who it is by "
        "`$DTF_FARM_RANK`, `$DTF_FARM_WORLD`, `$MASTER_ADDR` and `$MASTER_PORT`.",
        read=whole(1, MAX_GANG),
        schema={"type": "integer", "minimum": 1, "maximum": MAX_GANG},
    ),
    "array": Key(
        meaning="Instances of it: a number, or `{count: N}`. Each runs, is tried again and is recorded by itself, and finds its "
        "number from 0 in `$DTF_FARM_ARRAY_INDEX`; the task ends when all have.",
        read=array,
        schema={
            "oneOf": [
                _COUNT,
                {
                    "type": "object",
                    "required": ["count"],
                    "additionalProperties": False,
                    "properties": {"count": _COUNT},
                },
            ]
        },
    ),
    "labels": Key(meaning="Labels that the worker must carry, whatever alternative.", read=texts, schema=_TEXTS),
    "matrix": Key(
        meaning="Axes and their values: one task for each combination, less `exclude`, and those of `include` besides. "
        "`{{matrix.AXIS}}` stands for its value in `run`, `args`, `kwargs`, `env` and `name`, and in the script and arguments of `train`.",
        read=lambda node, _: read_matrix(node),
        schema={
            "type": "object",
            "properties": {"include": _CELLS, "exclude": _CELLS},
            "additionalProperties": {"type": "array", "minItems": 1, "items": _SCALAR},
        },
        default=False,
    ),
    "after": Key(
        meaning="Tasks of this plan that must have completed, all instances of a matrix, or ids of earlier tasks; or a mapping "
        "of task to `success` or `any`, which is: however it ended.",
        read=after,
        schema={"oneOf": [*_TEXTS["oneOf"], {"type": "object", "additionalProperties": {"enum": list(ENDS)}}]},
        default=False,
    ),
    "priority": Key(
        meaning="A higher number goes first within a project; without it 0, of a training -10.",
        read=whole(-(10**9), 10**9),
        schema={"type": "integer"},
    ),
    "timeout": Key(meaning="Of one attempt: seconds, or `90s`, `5m`, `1h30m`.", read=duration, schema=_DURATION_SCHEMA),
    "retries": Key(
        meaning="Tries after one that failed: a number, or `times` with what counts: `on` (`failed`, `timeout`, by default "
        "both) and `exit_codes` of those that failed. A lost worker costs no try.",
        read=retries,
        schema={"oneOf": [_TIMES, object_schema(RETRY_KEYS, ("times",))]},
    ),
    "env": Key(
        meaning="Variables in the command's environment.",
        read=environment,
        schema={"type": "object", "additionalProperties": _SCALAR},
    ),
    "inputs": Key(
        meaning="Place in the task's folder, and what lies there: a file or folder below where the plan is started, "
        "`https://...#sha256=DIGEST` (also `file://`, on the worker), or `git+URL@COMMIT`.",
        read=inputs,
        schema={"type": "object", "additionalProperties": _TEXT},
    ),
    "secrets": Key(
        meaning="Names of secrets, which the farm keeps for the project or the worker has itself: each is given as a variable, and masked in what comes out.",
        read=secrets,
        schema=_TEXTS,
    ),
    "permissions": Key(
        meaning="What the command may do with the farm, by a token of its own: `read` of itself and its subtasks, `submit` such.",
        read=permissions,
        schema=_TEXTS,
    ),
    "artifacts": Key(meaning="Patterns of the files that the task leaves.", read=texts, schema=_TEXTS),
    "limits": Key(
        meaning="Licence, and how many of it the task holds while it runs; `dtf farm licence set NAME N` says how many there are.",
        read=limits,
        schema={"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}},
    ),
    "expires": Key(
        meaning="How long after its submission it may still start; then it ends as expired.",
        read=duration,
        schema=_DURATION_SCHEMA,
    ),
    "key": Key(
        meaning="Whoever submits under the same key gets the same task; with a matrix it holds each axis.",
        read=text,
        schema=_TEXT,
        default=False,
    ),
    "reuse": Key(
        meaning="Whether a result that is known for the same inputs is taken in the place of running it: `true`, or how old it may "
        "be, such as `7d`.",
        read=reuse,
        schema={"oneOf": [{"type": "boolean"}, *_DURATION_SCHEMA["oneOf"]]},
    ),
    "folder": Key(meaning="Where it runs, below the folder in which the plan is started.", read=folder, schema=_TEXT),
}

KINDS = ("run", "call", "train")
"""Of tasks: each has one of these keys."""

DEFAULT_KEYS = {name: key for name, key in TASK_KEYS.items() if key.default}
"""Those that may stand under `defaults`."""


def _task_schema() -> dict[str, Any]:
    """A task is one of `run`, `call` and `train`."""
    return {**object_schema(TASK_KEYS), "oneOf": [{"required": [kind]} for kind in KINDS]}


PLAN_KEYS = {
    "name": Key(meaning="What the plan is called.", read=text, schema=_TEXT),
    "project": Key(meaning="Whose share of the farm it counts against.", read=text, schema=_TEXT),
    "priority": Key(
        meaning="Of tasks that name none.", read=TASK_KEYS["priority"].read, schema=TASK_KEYS["priority"].schema
    ),
    "key": Key(
        meaning="Whoever submits under the same key gets the same plan, with the same tasks.", read=text, schema=_TEXT
    ),
    "schedule": Key(
        meaning="When it is submitted, instead of at once: a cron expression of five fields (UTC), or `cron` with `timezone` and "
        "`overlap`.",
        read=schedule,
        schema={"oneOf": [_TEXT, object_schema(SCHEDULE_KEYS, ("cron",))]},
    ),
    "defaults": Key(
        meaning="What holds for each task that does not say otherwise; variables of `env` are joined.",
        read=lambda node, _: node,
        schema=object_schema(DEFAULT_KEYS),
    ),
    "tasks": Key(
        meaning="The tasks, by names that `after` refers to.",
        read=lambda node, _: node,
        schema={"type": "object", "minProperties": 1, "additionalProperties": _task_schema()},
    ),
}


def plan_schema() -> dict[str, Any]:
    """Return the JSON Schema of a plan."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A plan of dtf farm",
        **object_schema(PLAN_KEYS, ("tasks",)),
    }
