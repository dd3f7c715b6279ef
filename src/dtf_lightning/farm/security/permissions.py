"""Which role may do which operation: one table, from which the docs' table is written. Pure.

Rules that this file guards:
- What is not in the table nobody may do, and a role that is not named there may not.
- A token that is limited to projects gets of an operation what its `Reach` says; `Reach.NONE` is what an operation has that
  nobody has thought about.
- A task's token is limited to its project, and there to its own task and the plan of that task's id, which its subtasks are; and to
  what the task was submitted with (`TASK_MAY`).
- A worker's token speaks only in its worker's name and of the attempts that this worker makes (`ownership.py`); so does
  the admin's, which the farm's own token has, for whichever worker it is used by.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class Role(Enum):
    """Who somebody is to the farm."""

    VIEWER = "viewer"
    """Looks."""
    DEVELOPER = "developer"
    """Looks, and submits and ends tasks."""
    CI = "ci"
    """A program that submits tasks and reads what came of them; it sees no page."""
    WORKER = "worker"
    """A machine that makes attempts at tasks."""
    OPERATOR = "operator"
    """As a developer, and changes the farm: its workers, coordinators, projects and licences."""
    ADMIN = "admin"
    """Everything, tokens among it. The farm's own token is one."""
    TASK = "task"
    """An attempt's command, for as long as that attempt counts: of its own task and of the subtasks that it has submitted."""
    JOIN = "join"
    """A machine that is to become a worker: its token is good for that alone."""
    REFRESH = "refresh"
    """A worker that wants its next token: this one is good for that alone, once."""


GIVEN = tuple(role for role in Role if role not in (Role.JOIN, Role.REFRESH, Role.TASK))
"""Roles that a token can be made for."""


class Reach(Enum):
    """What a token gets of an operation that is limited to projects."""

    NONE = "none"
    """Nothing: the operation is about all projects."""
    ALL = "all"
    """All of it: it tells nothing of other projects' tasks."""
    TASK = "task"
    """A task of these projects."""
    TASKS = "tasks"
    """Tasks of these projects, which the request names."""
    JOB = "job"
    """A job that is split over devices, of one of these projects."""
    PLAN = "plan"
    """A plan all of whose tasks are of these projects."""
    LIST = "list"
    """A list of one of these projects, which the request must name."""
    BODY = "body"
    """Tasks of these projects: what is submitted is looked at."""


@dataclass(frozen=True)
class Permission:
    """Who may do an operation."""

    roles: frozenset[Role]
    reach: Reach = Reach.NONE


TASK_MAY: Mapping[str, frozenset[str]] = {
    "read": frozenset(
        (
            "task.get",
            "task.ends",
            "task.logs",
            "task.artifacts",
            "artifact.get",
            "plan.get",
            "source.exists",
            "source.get",
            "api.describe",
        )
    ),
    "submit": frozenset(("task.submit", "task.cancel", "plan.cancel", "source.put")),
}
"""What a task is submitted with -> what its command may do by that; `submit` is `read`, too."""
_BY_TASKS = TASK_MAY["read"] | TASK_MAY["submit"]

_LOOKING = frozenset((Role.VIEWER, Role.DEVELOPER, Role.CI, Role.OPERATOR, Role.ADMIN))
_SHOWING = _LOOKING - {Role.CI}
_SUBMITTING = frozenset((Role.DEVELOPER, Role.CI, Role.OPERATOR, Role.ADMIN))
_WORKING = frozenset((Role.WORKER, Role.ADMIN))
_OPERATING = frozenset((Role.OPERATOR, Role.ADMIN))
_ADMIN = frozenset((Role.ADMIN,))


def _may(roles: frozenset[Role], **reaches: Reach) -> dict[str, Permission]:
    return {name.replace("__", "."): Permission(roles, reach) for name, reach in reaches.items()}


_ROLES: Mapping[str, Permission] = {
    **_may(
        _LOOKING,
        task__list=Reach.LIST,
        task__get=Reach.TASK,
        task__past=Reach.TASK,
        task__ends=Reach.TASKS,
        task__logs=Reach.TASK,
        task__artifacts=Reach.TASK,
        plan__get=Reach.PLAN,
        quarantine__list=Reach.LIST,
        result__list=Reach.LIST,
        result__get=Reach.TASK,
        result__aggregate=Reach.NONE,
        result__query=Reach.NONE,
        client__connect=Reach.ALL,
        update__follow=Reach.ALL,  # `ownership.narrowed` takes the others' updates away
        worker__list=Reach.ALL,
        worker__get=Reach.ALL,
        worker__capabilities=Reach.ALL,
        project__list=Reach.ALL,
        licence__list=Reach.ALL,
        status__get=Reach.ALL,
        cluster__status=Reach.ALL,
        cluster__nodes=Reach.ALL,
        cluster__health=Reach.ALL,
        cluster__leader=Reach.ALL,
        health__findings=Reach.NONE,
        scaling__get=Reach.NONE,
        reservation__list=Reach.NONE,
        alert__list=Reach.NONE,
        metrics__get=Reach.NONE,
        schedule__list=Reach.NONE,
        schedule__get=Reach.NONE,
        orchestration__get=Reach.JOB,
        orchestration__list=Reach.LIST,
    ),
    **_may(_LOOKING | {Role.WORKER}, artifact__get=Reach.TASK, source__exists=Reach.ALL, source__get=Reach.ALL),
    **_may(_LOOKING | {Role.WORKER}, api__describe=Reach.ALL),
    **_may(_SHOWING, dashboard__get=Reach.NONE, cluster__visualize=Reach.ALL),
    **_may(
        _SUBMITTING,
        task__submit=Reach.BODY,
        task__cancel=Reach.TASK,
        task__stdin=Reach.TASK,
        task__retry=Reach.TASK,
        task__rerun=Reach.TASK,
        plan__submit=Reach.BODY,
        plan__cancel=Reach.PLAN,
        plan__retry=Reach.PLAN,
        source__put=Reach.ALL,
        schedule__remove=Reach.NONE,
        schedule__pause=Reach.NONE,
        schedule__resume=Reach.NONE,
        schedule__run=Reach.NONE,
        orchestration__submit=Reach.BODY,
        orchestration__cancel=Reach.BODY,
    ),
    **_may(_SUBMITTING, secret__list=Reach.LIST),
    **_may(
        _SUBMITTING - {Role.CI},
        quarantine__set=Reach.BODY,
        quarantine__remove=Reach.BODY,
        secret__set=Reach.BODY,
        secret__remove=Reach.BODY,
    ),
    **_may(
        _WORKING,
        worker__connect=Reach.NONE,
        worker__register=Reach.NONE,
        worker__tasks=Reach.NONE,
        worker__health=Reach.NONE,
        attempt__complete=Reach.NONE,
        attempt__fail=Reach.NONE,
        attempt__stdin=Reach.NONE,
        attempt__logs=Reach.NONE,
        attempt__offer_artifacts=Reach.NONE,
        attempt__put_artifact=Reach.NONE,
        attempt__secrets=Reach.NONE,
        attempt__token=Reach.NONE,
        subtask__complete=Reach.NONE,
        subtask__fail=Reach.NONE,
    ),
    **_may(
        _OPERATING,
        cluster__disable=Reach.NONE,
        cluster__enable=Reach.NONE,
        worker__drain=Reach.NONE,
        worker__cordon=Reach.NONE,
        worker__uncordon=Reach.NONE,
        reservation__make=Reach.NONE,
        reservation__cancel=Reach.NONE,
        alert__acknowledge=Reach.NONE,
        alert__silence=Reach.NONE,
        alert__unsilence=Reach.NONE,
        alert__test=Reach.NONE,
        project__set=Reach.NONE,
        licence__set=Reach.NONE,
    ),
    **_may(
        _ADMIN,
        token__create=Reach.NONE,
        token__list=Reach.NONE,
        token__revoke=Reach.NONE,
        token__rotate_keys=Reach.NONE,
        secret__rotate=Reach.NONE,
    ),
    **_may(frozenset((Role.JOIN,)), token__join=Reach.NONE),
    **_may(frozenset((Role.REFRESH,)), token__refresh=Reach.NONE),
}
PERMISSIONS: Mapping[str, Permission] = {
    name: replace(one, roles=one.roles | {Role.TASK}) if name in _BY_TASKS else one for name, one in _ROLES.items()
}
"""Operation -> who may do it."""


def reason_against_task(operation: str, permissions: Collection[str]) -> str:
    """Return why a task that was submitted with these may not do an operation; "" if it may."""
    wanted = next((name for name, operations in TASK_MAY.items() if operation in operations), "")
    if wanted in permissions or (wanted == "read" and "submit" in permissions):
        return ""
    return f"{operation} is for tasks that were submitted with `permissions: [{wanted}]`"


def reason_against(operation: str, role: Role, *, limited: bool) -> str:
    """Return why a role may not do an operation; "" if it may.

    Args:
        limited: whether the token is limited to projects.
    """
    permission = PERMISSIONS.get(operation)
    if permission is None:
        return f"nobody may do {operation or 'this'}: it has no entry in the table of permissions"
    if role not in permission.roles:
        able = [other.value for other in Role if other in permission.roles - {Role.TASK}]  # which nobody can be given
        return f"{operation} needs the role {_either(able)}; this token's role is {role.value}"
    if limited and permission.reach is Reach.NONE:
        return f"{operation} is about all projects, and this token is limited to some"
    return ""


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
