"""Whose a thing is that somebody asks for: projects of a limited token, attempts of a worker. Pure.

Rules that this file guards:
- A token that is limited to projects never gets a list of all: it names one, or gets its only one.
- A worker speaks in its own name, which is its token's subject.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from urllib.parse import parse_qsl, urlencode

from dtf_lightning.farm.security.identity import Forbidden, Identity


def refuse_projects(identity: Identity, projects: Iterable[str]) -> None:
    """Raise `Forbidden` where a token is limited to other projects than all of these."""
    others = sorted(set(projects) - identity.projects) if identity.projects else []
    if others:
        raise Forbidden(
            f"this token is limited to {_listed(identity.projects)}, and this is of {_listed(others)}: ask with another token"
        )


def narrowed_query(identity: Identity, query: bytes) -> bytes:
    """Return a list's query as a limited token gets it: of one of its projects. Raises `Forbidden`."""
    if not identity.projects:
        return query
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    named = [value for name, value in pairs if name == "project" and value]
    if not named and len(identity.projects) == 1:
        rest = [(name, value) for name, value in pairs if name != "project"]
        return urlencode([*rest, ("project", min(identity.projects))]).encode()
    if len(named) != 1 or len([name for name, _ in pairs if name == "project"]) != 1:
        raise Forbidden(
            f"this token is limited to {_listed(identity.projects)}: name one of them, such as "
            f"?project={min(identity.projects)}"
        )
    refuse_projects(identity, named)
    return query


def narrowed_filter(identity: Identity, wanted: Mapping[str, frozenset[str]]) -> Mapping[str, frozenset[str]]:
    """Return which updates on tasks a token gets of those that it wants. Raises `Forbidden` where there could be none."""
    if not identity.projects:
        return wanted
    projects = wanted.get("project", identity.projects) & identity.projects
    if not projects:
        refuse_projects(identity, wanted["project"])
    return {**wanted, "project": projects}


def refuse_name(identity: Identity, worker: str) -> None:
    """Raise `Forbidden` where somebody speaks in the name of another worker."""
    own = identity.worker
    if own is not None and own != worker:
        raise Forbidden(f"this token is of the worker {own!r}, and speaks for no other, as here for {worker!r}")


def refuse_attempt(identity: Identity, task: str, workers: Iterable[str]) -> None:
    """Raise `Forbidden` where a worker speaks of an attempt that others make. `workers`: who make it, as far as known."""
    own = identity.worker
    if own is not None and own not in workers:
        raise Forbidden(f"the worker {own!r} makes no such attempt at the task {task}: it speaks of its own alone")


def refuse_subtask(identity: Identity, what: str, plan: object) -> None:
    """Raise `Forbidden` where a task asks for what is not of the plan that its subtasks are. `plan`: whose `what` is."""
    if plan != identity.subject:
        raise Forbidden(
            f"this token is of the task {identity.subject}: it reaches that and its subtasks, and not {what}"
        )


def refuse_powers(identity: Identity, own: Collection[str], wanted: Iterable[str], permissions: Iterable[str]) -> None:
    """Raise `Forbidden` where a task submits one that could do more than itself, or would submit others.

    Args:
        own: names of its secrets.
        wanted: of those of the one that it submits.
    """
    if more := sorted(set(wanted) - set(own)):
        raise Forbidden(
            f"the task {identity.subject} does not have the secret {more[0]}: its subtasks cannot have it, either"
        )
    if "submit" in permissions:
        raise Forbidden(
            f"subtasks of the task {identity.subject} submit no others: leave `submit` out of their permissions"
        )


def _listed(projects: Iterable[str]) -> str:
    names = sorted(projects)
    return f"the project{'s' if len(names) > 1 else ''} {', '.join(names)}"
