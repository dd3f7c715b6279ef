"""Projects, licences and tasks, as the scheduler and those who submit are told of them. Pure.

Rules that this file guards:
- The project `default` always exists, with the weight 1; any other is there once an operator has set it.
- A licence exists once an operator has said how many of it there are. A task that wants one that does not exist, or more
  than there are, is refused: it could never start.
- A project's `max_running` counts as a licence of its own, of which each of its tasks holds one while it runs.
- A project's own limit of a licence counts as a licence of its own beside the farm's.
- A secret that the farm keeps for a task's project is there on every worker; any other one a worker must have itself.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import Attempt, LicenceRecord, ProjectRecord, TaskSpecification, WorkerRecord
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.needs import Need, lacking, needed
from dtf_lightning.farm.rules.scheduling.door import ReadyTask
from dtf_lightning.farm.rules.submissions.room import why_no_room
from dtf_lightning.farm.server.envelopes import shortened

DEFAULT = "default"
NO_SPEEDS: Mapping[str, float] = {}
"""One for all tasks of which nothing is known: there may be a hundred thousand of them."""


def projects(mirror: Mirror) -> dict[str, ProjectRecord]:
    """Return all projects by name, sorted; `default` among them."""
    found = {DEFAULT: ProjectRecord()}
    for (name,), held in mirror.all(Kind.PROJECT).items():
        assert isinstance(held.value, ProjectRecord)
        found[name] = held.value
    return dict(sorted(found.items()))


def licences(mirror: Mirror) -> dict[str, int]:
    """Return how many there are of each licence, by name, sorted."""
    found = {}
    for (name,), held in sorted(mirror.all(Kind.LICENCE).items()):
        assert isinstance(held.value, LicenceRecord)
        found[name] = held.value.total
    return found


def totals(mirror: Mirror) -> dict[str, int]:
    """Return how many there are of each licence as the scheduler counts them: the farm's, and each project's own."""
    found = licences(mirror)
    for project, record in projects(mirror).items():
        found |= {own(project, licence): number for licence, number in record.limits.items()}
        if record.max_running:
            found[running(project)] = record.max_running
    return found


def limits_of(mirror: Mirror, specification: TaskSpecification) -> Mapping[str, int]:
    """Return what a task holds while it runs, as the scheduler counts it."""
    held = mirror.get(Kind.PROJECT, specification.project)
    if held is None:
        return specification.limits
    assert isinstance(held.value, ProjectRecord)
    if not specification.limits and not held.value.max_running:
        return specification.limits
    of_project = {
        own(specification.project, licence): number
        for licence, number in specification.limits.items()
        if licence in held.value.limits
    }
    quota = {running(specification.project): 1} if held.value.max_running else {}
    return {**specification.limits, **of_project, **quota}


def needs_of(mirror: Mirror, specification: TaskSpecification) -> tuple[Need, ...]:
    """Return the alternatives of what a task needs of its worker, secrets that the farm does not keep among it."""
    if not specification.secrets:
        return needed(specification.needs)
    kept = mirror.all(Kind.SECRET)
    beside = [name for name in specification.secrets if (specification.project, name) not in kept]
    return needed(specification.needs, beside)


def ready_task(mirror: Mirror, task: str, attempt: Attempt, expectations: Expectations) -> ReadyTask:
    """Return a task as the scheduler takes it."""
    held = mirror.get(Kind.TASK, task)
    assert held is not None
    value = held.value
    assert isinstance(value, TaskSpecification)
    known = expectations.of(value.project, value.name, shortened(value.command))
    return ReadyTask(
        task=task,
        project=value.project,
        plan=value.plan,
        priority=value.priority,
        submitted=value.submitted,
        sequence=held.create_revision,
        needs=needs_of(mirror, value),
        gang=value.gang,
        excluded=(*attempt.excluded, *value.avoid),
        expected=None if known is None else known.seconds,
        speeds=NO_SPEEDS if known is None else known.speeds,
        limits=limits_of(mirror, value),
    )


def who_lacks_what(mirror: Mirror, workers: Mapping[str, WorkerRecord], specification: TaskSpecification) -> str:
    """Say what none of these workers has, if none of them could do the task."""
    needs = needs_of(mirror, specification)
    missing = [
        min((lacking(need, record.devices, record.labels) for need in needs), key=len) for record in workers.values()
    ]
    able = sum(not lacks for lacks in missing)
    if not missing or able >= specification.gang:
        return ""
    if able:
        return f"only {able} of the {len(workers)} workers can do it, and it needs {specification.gang} at once"
    return f"none of the {len(workers)} workers can do it; the nearest lacks {', '.join(sorted(missing, key=len)[0])}"


def own(project: str, licence: str) -> str:
    """Return the name under which a project's own limit of a licence is counted."""
    return f"{licence} of project {project}"


def running(project: str) -> str:
    """Return the name under which a project's tasks that run are counted against its `max_running`."""
    return f"max_running of the project {project}"


def why_no_room_for(mirror: Mirror, specifications: Mapping[str, TaskSpecification]) -> str:
    """Say which project's quota does not take these tasks, by their ids; "" if all do. Those that are known count once."""
    limited = {name: record.max_pending for name, record in projects(mirror).items() if record.max_pending}
    if not limited:
        return ""
    new = Counter(asked.project for task, asked in specifications.items() if mirror.get(Kind.TASK, task) is None)
    if not new.keys() & limited.keys():
        return ""
    pending = Counter(
        held.value.project for held in mirror.all(Kind.TASK).values() if isinstance(held.value, TaskSpecification)
    )
    reasons = (why_no_room(name, pending=pending[name], new=new[name], most=most) for name, most in limited.items())
    return next(filter(None, reasons), "")


def why_refused(mirror: Mirror, specification: TaskSpecification) -> str:
    """Say what is wrong with a task's project or its licences, and what to write; "" if nothing is."""
    project = specification.project
    if project != DEFAULT and mirror.get(Kind.PROJECT, project) is None:
        return (
            f"no project is called {project!r}{_nearest(project, projects(mirror))} To make it: "
            f"dtf farm project set {project} --weight 1"
        )
    if not specification.limits:
        return ""
    known, here = totals(mirror), licences(mirror)
    for name, number in sorted(specification.limits.items()):
        if name not in here:
            return (
                f"no licence is called {name!r}{_nearest(name, here)} To say how many there are: "
                f"dtf farm licence set {name} {max(number, 1)}"
            )
        if number < 1:
            return f"the limit {name!r} must be a whole number above 0, got {number}"
    for name, number in sorted(limits_of(mirror, specification).items()):
        if number > known.get(name, 0):
            return f"it needs {number} of the licence {name}, of which there are {known.get(name, 0)}: it could never start"
    return ""


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}." if names else "; there are none."
