"""From a plan's YAML to its tasks.

Rules that this file guards:
- Nothing is guessed: an unknown key, name or axis is an error at its place, with the nearest that there is.
- Names of tasks are unique in the plan; what a task comes after is there, and nothing comes after itself, however far round.
- The plan is bounded before it is expanded: `MAX_TASKS` tasks, `MAX_LINKS` dependencies between them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.farm.plans.calls import Fill, filled
from dtf_lightning.farm.plans.keys import DEFAULT_KEYS, KINDS, PLAN_KEYS, TASK_KEYS, Retries
from dtf_lightning.farm.plans.matrix import filler
from dtf_lightning.farm.plans.plan import MAX_LINKS, MAX_TASKS, Cell, Plan, PlanTask
from dtf_lightning.farm.rules.dependencies import find_cycle
from dtf_lightning.farm.rules.needs import DEFAULT_NEED, Need
from dtf_lightning.farm.trainings import launch
from dtf_lightning.settings.marked_yaml import Node, Place, nearest, parse_marked, read_marked

TASK_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
"""What a task's id looks like: a UUID of version 7."""


def read_plan(path: str) -> Plan:
    """Return the plan of a YAML file. Raises `SettingsError` that names file, line and column."""
    return _plan(read_marked(path), path)


def parse_plan(text: str, file: str = "plan.yaml", *, name: str = "") -> Plan:
    """Return the plan of a YAML text. Raises `SettingsError`.

    Args:
        file: its name, for errors.
        name: of the plan, where it does not say so itself; "": the file's.
    """
    return _plan(parse_marked(text, file), file, name)


@dataclass(frozen=True)
class _Entry:
    """One key under `tasks`, read and not expanded."""

    name: str
    place: Place
    told: Mapping[str, Any]
    """Key -> what its reader returned, the defaults among them."""
    node: Node

    @property
    def cells(self) -> tuple[Cell | None, ...]:
        return self.told.get("matrix") or (None,)


def _plan(root: Node, file: str, name: str = "") -> Plan:
    root.refuse_unknown(PLAN_KEYS, "a plan")
    told = {name: PLAN_KEYS[name].read(node, name) for name, node in root.value.items()}
    if "tasks" not in told:
        raise root.error(
            "the plan has no tasks: write them under `tasks:`, each with a `run:`, a `call:` or a `train:`"
        )
    defaults: dict[str, Any] = {"priority": told["priority"]} if "priority" in told else {}
    if "defaults" in told:
        told["defaults"].refuse_unknown(DEFAULT_KEYS, "defaults")
        defaults |= {name: DEFAULT_KEYS[name].read(node, name) for name, node in told["defaults"].value.items()}
    nodes: Node = told["tasks"]
    entries = [_entry(name, node, nodes.keys[name], defaults) for name, node in nodes.mapping("tasks").items()]
    if not entries:
        raise nodes.error("the plan has no tasks: each is a name with a `run:`, a `call:` or a `train:`")
    total = sum(len(entry.cells) for entry in entries)
    if total > MAX_TASKS:
        raise nodes.error(f"the plan has {total} tasks, {MAX_TASKS} are allowed")
    after, after_any = _links(entries)
    if "schedule" in told:
        _refuse_keys(root, entries)
    _check_jobs(root, entries)
    return Plan(
        name=told.get("name") or name or _stem(file),
        project=told.get("project", "default"),
        key=told.get("key", ""),
        schedule=told.get("schedule"),
        tasks=_unique([(entry, _task(entry, cell)) for entry in entries for cell in entry.cells]),
        after=after,
        after_any=after_any,
    )


def _entry(name: str, node: Node, place: Place, defaults: Mapping[str, Any]) -> _Entry:
    if not name.strip():
        raise place.error("a task's name is empty")
    node.refuse_unknown(TASK_KEYS, f"the task {name!r}")
    kinds = [kind for kind in KINDS if kind in node.value]
    if not kinds:
        raise node.error(
            f"the task {name!r} has no `run`, a shell line or a list of a program and its arguments, no `call`, a "
            "function such as package.module:function, and no `train`"
        )
    if len(kinds) > 1:
        raise node.keys[kinds[1]].error(f"the task {name!r} has a `{kinds[0]}` and a `{kinds[1]}`: it is one of them")
    for key in ("args", "kwargs"):
        if key in node.value and "call" not in node.value:
            raise node.keys[key].error(f"`{key}` of the task {name!r} are those of a `call`, which it does not have")
    told = {key: TASK_KEYS[key].read(one, key) for key, one in node.value.items()}
    if "env" in defaults and "env" in told:
        told["env"] = {**defaults["env"], **told["env"]}
    entry = _Entry(name, place, {**defaults, **told}, node)
    for key in ("gang", "array"):
        if "train" in told and key in entry.told:
            where, of = (
                (node.keys[key], "") if key in node.value else (node.keys["train"], ", which `defaults` gives it")
            )
            raise where.error(f"the training {name!r} has no `{key}`{of}: its `workers` say how many parts it has")
    if "train" in told and entry.told.get("reuse"):
        where = node.keys["reuse"] if "reuse" in node.value else node.keys["train"]
        raise where.error(f"the training {name!r} cannot `reuse` a result: what it gives lies in the folder of its run")
    if "train" in told and "suspend_for" in told["train"]:
        priority = entry.told.get("priority", launch.PRIORITY)
        if told["train"]["suspend_for"] <= priority:
            raise (
                node.value["train"]
                .value["suspend_for"]
                .error(f"suspend_for is a priority above the training's own, which is {priority}")
            )
        if (told["train"].get("options") or {}).get("mode") == "restart":
            raise node.value["train"].value["suspend_for"].error(launch.NOT_IN_RESTART_MODE)
    return entry


def _task(entry: _Entry, cell: Cell | None) -> PlanTask:
    told, fill = entry.told, filler(cell)
    name = f"{entry.name}[{','.join(cell.values())}]" if cell is not None else entry.name
    if "name" in told:
        name = fill(entry.node.value["name"], told["name"])
    retries = told.get("retries", Retries())
    return PlanTask(
        entry=entry.name,
        name=name,
        **_what(told, fill),
        call=told.get("call", ""),
        orchestrate=told.get("orchestrate"),
        args=tuple(filled(one, fill) for one in told.get("args", ())),
        kwargs={key: filled(one, fill) for key, one in told.get("kwargs", {}).items()},
        key=fill(entry.node.value["key"], told["key"]) if "key" in told else "",
        needs=_needs(told.get("needs", ()), told.get("labels", ())),
        gang=told.get("gang", 1),
        priority=told.get("priority", launch.PRIORITY if "train" in told else 0),
        timeout=told.get("timeout"),
        expires=told.get("expires"),
        retries=retries.times,
        retry_on=retries.on,
        retry_exit_codes=retries.exit_codes,
        environment={variable: fill(node, value) for variable, (node, value) in told.get("env", {}).items()},
        inputs=told.get("inputs", {}),
        secrets=told.get("secrets", ()),
        permissions=told.get("permissions", ()),
        artifacts=told.get("artifacts", ()),
        limits=told.get("limits", {}),
        reuse=told.get("reuse", 0.0),
        folder=told.get("folder", ""),
    )


def _what(told: Mapping[str, Any], fill: Fill) -> dict[str, Any]:
    """Return what is run, and how many times."""
    if "train" not in told:
        words = tuple(fill(node, word) for node, word in told.get("run", ()))
        return {"command": words, "array": told.get("array", 0)}
    training = told["train"]
    least, most = training.get("workers", (1, 1))
    command = launch.command(
        fill(*training["script"]),
        [fill(node, word) for node, word in training.get("args", ())],
        workers=(least, most),
        endpoint=training["endpoint"],
        python=training.get("python", "python"),
        options=training.get("options"),
        suspended="suspend_for" in training,
    )
    return {
        "command": tuple(command), "array": most, "training": least, "suspend_for": training.get("suspend_for"),
    }  # fmt: skip


def _needs(alternatives: tuple[Need, ...], labels: tuple[str, ...]) -> tuple[Need, ...]:
    if not labels:
        return alternatives
    return tuple(
        replace(need, labels=tuple(dict.fromkeys((*need.labels, *labels)))) for need in alternatives or (DEFAULT_NEED,)
    )


def _links(entries: list[_Entry]) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return what each comes after, and after whose any end."""
    by_name = {entry.name: entry for entry in entries}
    links = 0
    for entry in entries:
        for name, (node, _) in entry.told.get("after", {}).items():
            if name not in by_name and TASK_ID.fullmatch(name):
                continue
            if name not in by_name:
                raise node.error(
                    f"the task {entry.name!r} comes after {name!r}, which is not here{nearest(name, by_name)}"
                )
            links += len(entry.cells) * len(by_name[name].cells)
            if links > MAX_LINKS:
                raise node.error(
                    f"with this the tasks have {links} dependencies on each other, {MAX_LINKS} are allowed: let one task "
                    f"without a matrix (`run: 'true'`) come after {name!r}, and {entry.name!r} after that one"
                )
    every = {entry.name: tuple(name for name in entry.told.get("after", {}) if name in by_name) for entry in entries}
    if (cycle := find_cycle(every)) is not None:
        raise by_name[cycle[0]].place.error(f"tasks come after each other in a circle: {' after '.join(cycle)}")

    def of(any_end: bool) -> dict[str, tuple[str, ...]]:
        return {
            entry.name: tuple(name for name, (_, told) in entry.told.get("after", {}).items() if told is any_end)
            for entry in entries
        }

    return of(False), of(True)


def _unique(tasks: list[tuple[_Entry, PlanTask]]) -> tuple[PlanTask, ...]:
    seen: dict[str, _Entry] = {}
    keys: dict[str, _Entry] = {}
    for entry, task in tasks:
        if (other := seen.get(task.name)) is not None:
            where = entry.node.value["name"].place if "name" in entry.told else entry.place
            hint = "; let `name` hold each axis of the matrix" if other is entry else ""
            raise where.error(f"two tasks are called {task.name!r}, of {other.name!r} and {entry.name!r}{hint}")
        seen[task.name] = entry
        if task.key and (other := keys.get(task.key)) is not None:
            hint = "; let `key` hold each axis of the matrix" if other is entry else ""
            raise entry.node.value["key"].error(
                f"two tasks have the key {task.key!r}, of {other.name!r} and {entry.name!r}{hint}"
            )
        keys[task.key] = entry
    return tuple(task for _, task in tasks)


def _refuse_keys(root: Node, entries: list[_Entry]) -> None:
    """Raise `SettingsError` for a key in a plan with a schedule."""
    for node in (root, *(entry.node for entry in entries)):
        if "key" in node.value:
            raise node.keys["key"].error(
                "a plan with a `schedule` has no `key`: each of its runs would be the first one; leave one of the two out"
            )


def _check_jobs(root: Node, entries: list[_Entry]) -> None:
    """Raise `SettingsError` for what a job that is split over devices cannot be, and where one cannot stand."""
    jobs = {entry.name: entry for entry in entries if "orchestrate" in entry.told}
    for entry in jobs.values():
        where = entry.node.keys["orchestrate"]
        for key in ("train", "array", "gang", "key", "expires"):
            if key in entry.told:
                raise where.error(f"{entry.name!r} is split over devices (`orchestrate`), and has no `{key}`")
        for key in ("schedule", "key"):
            if key in root.value:
                raise where.error(
                    f"a plan with a `{key}` takes no `orchestrate` yet: submit {entry.name!r} by a plan of its own"
                )
    for entry in entries:
        for name, (node, _) in entry.told.get("after", {}).items():
            if name in jobs:
                raise node.error(
                    f"{entry.name!r} comes after {name!r}, which is split over devices, and whose subtasks are not known yet: let its "
                    "`merge` call a function, or submit what follows when it has ended"
                )


def _stem(file: str) -> str:
    return file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0] or "plan"
