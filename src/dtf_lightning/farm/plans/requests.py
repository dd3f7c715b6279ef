"""From a plan to what a farm is asked for: one request for each task, a dependency before what needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.plan import Plan, PlanTask
from dtf_lightning.farm.rules.inputs import is_local


def refuse_local(path: str) -> str:
    """Raise `SettingsError`: whoever reads the plan cannot see the files of who wrote it."""
    raise SettingsError(
        f"the input {path!r} is a path of another machine: run the plan there with `dtf farm run`, or name the input by "
        "https://...#sha256=DIGEST"
    )


def requests_of(
    plan: Plan,
    plan_id: str,
    new_id: Callable[[bool], str],
    *,
    source: str = "",
    folder: str = "",
    send: Callable[[str], str] = refuse_local,
) -> list[dict[str, Any]]:
    """Return the fields of each task's `TaskRequest`, in an order in which they may be submitted.

    Args:
        plan_id: what all of them carry as their `plan`.
        new_id: makes a task's id, or with `True` that of an array; asked once for each task, so that the requests may be sent again.
        source: digest of the archive that each unpacks; "": none.
        folder: where in it the plan was started.
        send: gives the farm the file or folder at a path, and returns its reference.

    Raises what `send` raises.
    """
    return [
        {"task_id": task_id, "plan": plan_id, "project": plan.project, "source": source}
        | {"dependencies": after, "after_any": after_any}
        | _fields(task, folder, send)
        for task, task_id, after, after_any in _placed(plan, new_id)
        if task.orchestrate is None
    ]


def jobs_of(
    plan: Plan,
    new_id: Callable[[bool], str],
    *,
    source: str = "",
    folder: str = "",
    send: Callable[[str], str] = refuse_local,
) -> list[dict[str, Any]]:
    """Return the fields of each `OrchestrateRequest`, for the plan's jobs that are split over devices.

    Args: as of `requests_of`, of which `new_id` must return the same ids again.
    """
    return [
        _job(plan, task, task_id, source, _fields(task, folder, send) | {"dependencies": after, "after_any": after_any})
        for task, task_id, after, after_any in _placed(plan, new_id)
        if task.orchestrate is not None
    ]


def _job(plan: Plan, task: PlanTask, task_id: str, source: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    how = dict(task.orchestrate or {})
    data = {
        name: fields[name]
        for name in (
            *("name", "environment", "needs", "limits", "folder", "artifacts", "secrets", "dependencies", "after_any"),
            *(name for name in ("command", "call", "args", "kwargs") if name in fields),
        )
    }
    data |= {"project": plan.project, "source": source, "files": fields["inputs"]}
    data |= {name: how.pop(name) for name in ("inputs", "functions", "models", "devices", "pieces") if name in how}
    told = {"task_id": task_id, "task_data": data, "priority": task.priority, "subtask_timeout": task.timeout, **how}
    return told | ({"retry_limit": task.retries} if task.retries else {})


def _placed(plan: Plan, new_id: Callable[[bool], str]) -> list[tuple[PlanTask, str, list[str], list[str]]]:
    """Return each task with its id, and the ids of what it comes after, in an order in which they may be submitted."""
    ids: dict[str, list[str]] = {}
    members: dict[str, list[PlanTask]] = {}
    for task in plan.tasks:
        members.setdefault(task.entry, []).append(task)
        ids.setdefault(task.entry, []).append(new_id(task.array > 0))
    placed = []
    for entry in _dependencies_first(plan):
        after = [one for name in plan.after[entry] for one in ids.get(name, (name,))]
        after_any = [one for name in plan.after_any[entry] for one in ids.get(name, (name,))]
        placed += [(task, task_id, after, after_any) for task, task_id in zip(members[entry], ids[entry], strict=True)]
    return placed


def _fields(task: PlanTask, folder: str, send: Callable[[str], str]) -> dict[str, Any]:
    return {
        "name": task.name,
        **_what(task),
        "environment": dict(task.environment),
        "needs": [
            {"amounts": dict(need.amounts), "labels": list(need.labels), "exclusive": need.exclusive}
            for need in task.needs
        ],
        "gang": task.gang,
        "array": task.array,
        "training": task.training,
        "suspend_for": task.suspend_for,
        "priority": task.priority,
        "timeout": task.timeout,
        "expires": task.expires,
        "retries": {"times": task.retries, "on": list(task.retry_on), "exit_codes": list(task.retry_exit_codes)},
        "limits": dict(task.limits),
        "folder": "/".join(part for part in (folder, task.folder) if part),
        "artifacts": list(task.artifacts),
        "key": task.key,
        "reuse": task.reuse,
        "secrets": list(task.secrets),
        "permissions": list(task.permissions),
        "inputs": {place: send(one) if is_local(one) else one for place, one in task.inputs.items()},
    }


def _what(task: PlanTask) -> dict[str, Any]:
    if not task.call:
        return {"command": list(task.command)}
    return {"call": task.call, "args": list(task.args), "kwargs": dict(task.kwargs)}


def _dependencies_first(plan: Plan) -> list[str]:
    """Return the entries, each behind those that it comes after, else in the file's order. There is no cycle."""
    after: Mapping[str, tuple[str, ...]] = {
        name: tuple(one for one in (*plan.after[name], *plan.after_any[name]) if one in plan.after)
        for name in plan.after
    }
    ordered: dict[str, None] = {}
    for start in after:
        stack = [(start, False)]
        while stack:
            entry, seen = stack.pop()
            if seen:
                ordered[entry] = None
            elif entry not in ordered:
                stack.append((entry, True))
                stack.extend((name, False) for name in reversed(after[entry]))
    return list(ordered)
