"""Trying tasks again that are done: what `rules.retries` says, on what the record and the results tell.

Rules that this file guards:
- A retry has an id of its own, which its client chose; every new task's id is made of it. So asking again submits nothing
  twice, and a large plan is submitted again in pages (`AT_ONCE`), each answered soon.
- What was asked for is kept beside the result (`record.asked`), in etcd and then in the archive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.record.task_id import new_task_id, paired_task_id
from dtf_lightning.farm.record.values import TaskOutcome, TaskSpecification
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.rules.retries import LIVE, PlanTask, Retries
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import SHOWN, Tasks, UnknownTask
from dtf_lightning.farm.trainings.launch import of_run

AT_ONCE = 1_000
"""Tasks that one request submits."""
SETTLING = 1.0
"""Seconds for this coordinator to see the end of a task, which its client has seen through another one."""


@dataclass(frozen=True)
class _Known:
    """What is known of a plan's tasks, and what those that did not complete were asked for."""

    retries: Retries
    asked: dict[str, TaskSpecification | None]


class TaskRetries:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, tasks: Tasks, history: History, clock: Clock) -> None:
        self._pool = pool
        self._tasks = tasks
        self._history = history
        self._clock = clock

    async def retry(self, task: str, retry_id: str) -> dict[str, Any]:
        """Submit a task that is done again, and what was skipped of its plan because of its end.

        Args:
            retry_id: a new id by the client; "": one is made here.

        Raises `UnknownTask`, `SettingsError` for a task that is not done or whose specification is not kept, and what
        `Tasks.accept` raises.
        """
        retry_id = retry_id or new_task_id(self._clock.wall())
        await self._pool.wait_for(task, lambda: self._pool.live(task) is None, SETTLING)
        if (live := self._pool.live(task)) is not None:
            what = "is running" if live.attempt.workers else "has not started yet"
            raise SettingsError(f"task {task} {what}: only a task that has ended can be tried again; cancel it first")
        envelope = await self._tasks.envelope(task)
        if envelope is None:
            await self._tasks.task(task)  # raises UnknownTask
            raise SettingsError(_not_kept(task))
        asked = unpack(envelope.asked)
        if envelope.plan and asked is not None:
            known = await self._known(envelope.plan, retry_id)
            known.asked[task] = asked
            again = known.retries.with_skipped(task)
        else:
            known, again = _Known(Retries([], lambda old: paired_task_id(retry_id, old)), {task: asked}), [task]
        anew = task if envelope.outcome is TaskOutcome.COMPLETED else ""
        told = await self._submit(known, again, retry_id, anew=anew)
        return {"task_id": paired_task_id(retry_id, task), "retry_of": task, "retry_id": retry_id, **told}

    async def retry_plan(self, plan: str, retry_id: str) -> dict[str, Any]:
        """Submit again what did not complete of a plan, `AT_ONCE` tasks at most; `num_left` says how many are left.

        Once none is left, `tasks` are all that were submitted by this retry.

        Raises as `retry`.
        """
        retry_id = retry_id or new_task_id(self._clock.wall())
        known = await self._known(plan, retry_id)
        again = known.retries.not_completed()
        if not again and not known.asked and not self._pool.num_live(plan):
            raise UnknownTask(f"this farm knows no task of the plan {plan!r}")
        return {"plan_id": plan, "retry_id": retry_id, **await self._submit(known, again, retry_id)}

    async def _known(self, plan: str, retry_id: str) -> _Known:
        """Read what is known of a plan, once nothing of it is about to be skipped."""
        deadline = time.monotonic() + SHOWN
        while True:
            known = await self._read(plan, retry_id)
            pending = known.retries.about_to_be_skipped()
            if not pending:
                return known
            task, left = pending[0], deadline - time.monotonic()
            if not await self._pool.wait_for(task, lambda: self._pool.live(task) is None, max(left, 0.0)):  # noqa: B023
                raise StoreUnavailable(
                    f"{len(pending)} tasks of the plan are about to be skipped, such as {task}, and no coordinator does "
                    "it now"
                )

    async def _read(self, plan: str, retry_id: str) -> _Known:
        # Those that are not done first: one that ends meanwhile is then among both, and its result counts.
        tasks = {
            live.task: PlanTask(
                task=live.task, outcome=LIVE, after=live.specification.after, retry_of=live.specification.retry_of
            )
            for live in self._pool.live_tasks()
            if live.specification.plan == plan and not live.specification.array_id
        }
        ended, asked = await asyncio.to_thread(self._read_ended, plan)
        tasks |= {task.task: task for task in ended}
        return _Known(Retries(tasks.values(), lambda old: paired_task_id(retry_id, old)), asked)

    def _read_ended(self, plan: str) -> tuple[list[PlanTask], dict[str, TaskSpecification | None]]:
        ended, asked = [], {}
        for task, outcome, retry_of, text in self._history.of_plan(plan):
            specification = unpack(text)
            if specification is not None and specification.array_id:
                continue  # its array is tried again as a whole, or it by itself
            asked[task] = specification
            after = specification.after if specification is not None else ()
            ended.append(PlanTask(task=task, outcome=outcome, after=after, retry_of=retry_of))
        return ended, asked

    async def _submit(self, known: _Known, again: Sequence[str], retry_id: str, *, anew: str = "") -> dict[str, Any]:
        """Submit a page of these. `anew`: a task that has completed; of a training that has not, the run goes on."""
        left = [task for task in again if not known.retries.is_made(task)]
        page = left[:AT_ONCE]
        specifications, chosen = {}, frozenset(again)
        for task in page:
            asked = known.asked.get(task)
            if asked is None:
                raise SettingsError(_not_kept(task))
            specifications[paired_task_id(retry_id, task)] = replace(
                asked,
                command=of_run(asked.command, task) if asked.training and task != anew else asked.command,
                after=known.retries.rewired(asked.after, chosen),
                after_any=known.retries.rewired(asked.after_any, chosen),
                key="",  # it names the first one
                training=asked.training if asked.array else 0,  # a part by itself borrows nothing
                array_id="",  # an instance that is tried again has its number, and is a task by itself
                retry_of=task,
                submitted=self._clock.wall(),
            )
        if specifications:
            await self._tasks.accept(specifications)
        num_left = len(left) - len(page)
        # Under an id that this retry made there is nothing but what it submitted, whatever has become of that since.
        made = [] if num_left else [{"retry_of": task, "task_id": paired_task_id(retry_id, task)} for task in again]
        return {"num_left": num_left, "tasks": made}


def _not_kept(task: str) -> str:
    return (
        f"the farm does not know what task {task} was asked for: it ended under an older release, or its command, "
        "environment and dependencies were too large to keep; submit it anew"
    )
