"""Submissions under idempotency keys: the same task for the same request, and a refusal of another one.

Rules that this file guards:
- Whose task counts is decided by the write (`Submit`): whatever is told here is told after it.
- A task that comes after one whose key names an earlier task comes after that earlier one.
- Who asks for something else under a key is told what differs, as far as it is kept what was asked for first.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dtf_lightning.errors import DtfError, StoreUnavailable
from dtf_lightning.farm.json_values import to_json
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.record.values import Envelope, KeyRecord, TaskOutcome, TaskSpecification
from dtf_lightning.farm.record.writes import ClaimPlan, Submitted
from dtf_lightning.farm.rules.submissions.differences import differences, sentence
from dtf_lightning.farm.server.models import TaskRequest
from dtf_lightning.farm.server.pool import Pool

_APART = ("plan", "submitted", "stdin", "retry_of", "key")
"""Fields in which requests under one key may differ: ids and times of the submission itself."""


ANY_ID = new_task_id(1_800_000_000.0, 0)
"""From which the ids are made of a plan of which a digest is taken."""
TRIES = 10


class ClaimsPlans(Protocol):
    """What knows the tasks of a plan, as `Tasks` does."""

    known: KnownRequests


class OtherRequest(DtfError):
    """Something else was submitted under the same key."""


class KnownRequests:
    """What tasks were asked for, whether they are done or not.

    Args:
        envelope: returns a result from wherever it is kept.
        outcome: returns how a task ended, also where nothing else is kept of it.
    """

    def __init__(
        self,
        pool: Pool,
        envelope: Callable[[str], Awaitable[Envelope | None]],
        outcome: Callable[[str], Awaitable[TaskOutcome | None]],
    ) -> None:
        self._pool = pool
        self._envelope = envelope
        self._outcome = outcome

    async def is_known(self, task: str) -> bool:
        """Whether a task was accepted. Raises what etcd raises."""
        return self._pool.live(task) is not None or await self._outcome(task) is not None

    async def asked(self, task: str) -> TaskSpecification | None:
        """Return what a task was asked for; `None` if that is not known. Raises what etcd raises."""
        if (live := self._pool.live(task)) is not None:
            return live.specification
        envelope = await self._envelope(task)
        return unpack(envelope.asked) if envelope is not None else None

    async def difference(self, task: str, wanted: TaskSpecification) -> str:
        """Say in what a request differs from that of a task that is there; "": in nothing, as far as it is known."""
        known = await self.asked(task)
        return "" if known is None else sentence(differences(_fields(known), _fields(wanted)))


def _fields(specification: TaskSpecification) -> dict[str, Any]:
    told = {name: value for name, value in to_json(specification).items() if name not in _APART}
    return told | ({"stdin": True} if specification.stdin else {})


def renamed(specification: TaskSpecification, names: Mapping[str, str]) -> TaskSpecification:
    """Return what a task is asked for where some that it comes after have other ids than was said."""
    if names.keys().isdisjoint((*specification.after, *specification.after_any)):
        return specification
    return replace(
        specification,
        after=tuple(names.get(one, one) for one in specification.after),
        after_any=tuple(names.get(one, one) for one in specification.after_any),
    )


def renamed_requests(requests: Sequence[TaskRequest], names: Mapping[str, str]) -> list[TaskRequest]:
    """Return requests as `renamed` does."""
    if not names:
        return list(requests)
    return [
        request.model_copy(
            update={
                "dependencies": tuple(names.get(one, one) for one in request.dependencies),
                "after_any": tuple(names.get(one, one) for one in request.after_any),
            }
        )
        for request in requests
    ]


async def submit_keyed(
    specifications: Mapping[str, TaskSpecification],
    ordered: Sequence[str],
    submit: Callable[[Mapping[str, TaskSpecification]], Awaitable[list[Submitted]]],
    known: KnownRequests,
) -> dict[str, Submitted]:
    """Submit tasks, those first that others come after and whose keys may name earlier tasks; returns what became of each.

    Args:
        ordered: the tasks, each behind those that it comes after.
        submit: writes some of them at once.

    Raises `OtherRequest` where something else was asked for under a key, after all were submitted; and what `submit` raises.
    """
    names: dict[str, str] = {}
    verdicts: dict[str, Submitted] = {}
    wanted: dict[str, TaskSpecification] = {}
    left = list(ordered)
    while left:
        waiting = {task for task in left if specifications[task].key}
        now = [task for task in left if waiting.isdisjoint(_after(specifications[task]))]
        part = {task: renamed(specifications[task], names) for task in now}
        wanted |= part
        for task, verdict in zip(now, await submit(part), strict=True):
            verdicts[task] = verdict
            if verdict.task != task:
                names[task] = verdict.task
        left = [task for task in left if task not in part]
    for task, other in names.items():
        if told := await known.difference(other, wanted[task]):
            raise OtherRequest(
                f"another request was submitted under the key {specifications[task].key!r}, as task {other}: {told}. Choose "
                "another key, or ask for the same"
            )
    return verdicts


def _after(specification: TaskSpecification) -> tuple[str, ...]:
    return (*specification.after, *specification.after_any)


async def claim_plan(
    key: str, sent: Callable[[str], Sequence[TaskRequest]], plan_id: str, tasks: ClaimsPlans, record: FarmRecord
) -> str:
    """Return the id of the plan that is submitted under a key: `plan_id`, or that of an earlier one.

    Args:
        sent: returns what is asked for, with ids that are made from a plan's. It reads the whole plan, and is called in threads.

    Raises `OtherRequest` where another plan was submitted under it, and what etcd raises.
    """
    first, digest = await asyncio.to_thread(lambda: (sent(plan_id)[0].task_id, digest_of(sent(ANY_ID))))
    mine, seen = KeyRecord(task=first, plan=plan_id, digest=digest), 0
    for _ in range(TRIES):
        there, revision = await record.answer(ClaimPlan(key=key, record=mine, seen=seen))
        if there.digest == digest and revision:
            return there.plan
        if revision and await tasks.known.is_known(there.task):
            requests = await asyncio.to_thread(sent, there.plan)
            raise OtherRequest(
                f"another plan was submitted under the key {key!r}, as {there.plan}: {await _plans_differ(tasks, requests)}. "
                "Choose another key, or submit the same plan"
            )
        seen = revision  # nothing came of it: it was refused
    raise StoreUnavailable(f"the key {key!r} changes all the time, try again")


async def _plans_differ(tasks: ClaimsPlans, requests: Sequence[TaskRequest]) -> str:
    for request in requests:
        known = await tasks.known.asked(request.task_id)
        if known is None:
            return f"it has no task {request.name!r} in this place"
        if told := sentence(differences(_fields(known), _fields(request.specification(0.0)))):
            return f"of its task {request.name!r} {told}"
    return "it has more tasks"


def digest_of(requests: Sequence[TaskRequest]) -> str:
    """Return the same for the same plan: of requests whose ids are made from one id."""
    text = json.dumps([request.model_dump(mode="json") for request in requests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
