"""What people do with schedules: register, look, pause, go on, remove, run now. Any coordinator does it; the leader submits."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.farm.plans.plan import Plan
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.schedules.values import RunState, ScheduleRecord, ScheduleRun
from dtf_lightning.farm.record.schedules.writes import RemoveSchedule, SetSchedule
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.rules.submissions.schedules import next_time
from dtf_lightning.farm.server.models import TaskRequest, when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.schedules.expanding import SentPlan
from dtf_lightning.farm.server.schedules.keeper import SHOWN, TRIES, ScheduleKeeper, running_plan, schedules, times_here
from dtf_lightning.farm.server.tasks import Tasks, UnknownTask

MAX_TEXT = 400_000
"""Characters of a scheduled plan: every coordinator holds it in memory."""
MAX_NAME = 100


class Schedules:
    """The schedules of a farm, as one coordinator serves them. Runs on its event loop."""

    def __init__(self, pool: Pool, record: FarmRecord, tasks: Tasks, history: History, clock: Clock) -> None:
        self._pool = pool
        self._record = record
        self._tasks = tasks
        self._history = history
        self._clock = clock

    async def keep(self, epoch: Callable[[], int]) -> None:
        """Submit what is due while this coordinator leads, until cancelled. `epoch`: as `ScheduleKeeper` takes it."""
        await ScheduleKeeper(self._pool, self._record, self._tasks, self._clock, epoch).run()

    # --- changing ----------------------------------------------------------------------------------------------------

    async def register(
        self, plan: Plan, requests: Sequence[TaskRequest], sent: SentPlan, *, strict: bool = False
    ) -> dict[str, Any]:
        """Register a plan that has a schedule, in the place of the one of its name; says whether there was one.

        `strict`: refuse it also where no worker that is there could do one of its tasks. Raises `SettingsError` for a plan that the farm
        could not take now.
        """
        assert plan.schedule is not None
        _check(plan.name, sent.text)
        now = self._clock.wall()
        specifications = {one.task_id: one.specification(now) for one in requests}
        self._tasks.check_possible(specifications)
        if strict:
            self._tasks.check_able(specifications)
        digests = {digest for one in specifications.values() for digest in one.stored}
        record = ScheduleRecord(
            plan=sent.text,
            cron=plan.schedule.cron,
            timezone=plan.schedule.timezone,
            overlap=plan.schedule.overlap,
            project=plan.project,
            source=sent.source,
            folder=sent.folder,
            inputs=sent.inputs,
            digests=tuple(sorted(digests)),
            registered=now,
            decided=now,
        )
        before = await self._change(plan.name, lambda old: replace(record, runs=_cut_off(old)))
        return self.show(plan.name) | {"replaced": before is not None}

    async def pause(self, name: str, *, paused: bool) -> dict[str, Any]:
        """Let a schedule rest, or go on: the times that went by meanwhile are not caught up. Raises `UnknownTask`."""

        def changed(old: ScheduleRecord | None) -> ScheduleRecord:
            old = self._known(name, old)
            decided = old.decided if paused or not old.paused else max(old.decided, self._clock.wall())
            return replace(old, paused=paused, decided=decided)

        await self._change(name, changed)
        return self.show(name)

    async def run_now(self, name: str, plan_id: str) -> dict[str, Any]:
        """Submit the plan of a schedule now, also beside a run that goes on, under an id of the client's; once however often.

        Raises `UnknownTask`, and `SettingsError` for an id that is none.
        """
        self._tasks.check_id(plan_id)
        now = self._clock.wall()
        run = ScheduleRun(plan=plan_id, time=now, decided=now, state=RunState.SUBMITTING, by_hand=True)

        def changed(old: ScheduleRecord | None) -> ScheduleRecord:
            old = self._known(name, old)
            return old if any(one.plan == plan_id for one in old.runs) else old.with_run(run)

        await self._change(name, changed)
        return {"name": name, "plan_id": plan_id}

    async def remove(self, name: str) -> dict[str, Any]:
        """Forget a schedule; its runs go on. Raises `UnknownTask`."""
        for _ in range(TRIES):
            self.find(name)
            seen = self._pool.mirror.seen(Kind.SCHEDULE, name)
            gone = await self._record.answer(RemoveSchedule(name=name, seen=seen))
            await self._pool.wait_for_change(Kind.SCHEDULE, name, seen, SHOWN if gone else 1.0)
            if gone:
                return {"name": name, "removed": True}
        raise StoreUnavailable(f"the schedule {name} changes all the time, try again")

    async def _change(
        self, name: str, changed: Callable[[ScheduleRecord | None], ScheduleRecord]
    ) -> ScheduleRecord | None:
        """Write what `changed` makes of a schedule, whoever changes it besides; returns what was there before."""
        for _ in range(TRIES):
            held = self._pool.mirror.get(Kind.SCHEDULE, name)
            old = held.value if held is not None and isinstance(held.value, ScheduleRecord) else None
            record, seen = changed(old), self._pool.mirror.seen(Kind.SCHEDULE, name)
            if record == old:
                return old
            made = await self._record.answer(SetSchedule(name=name, record=record, seen=seen))
            await self._pool.wait_for_change(Kind.SCHEDULE, name, seen, SHOWN if made else 1.0)
            if made:
                return old
        raise StoreUnavailable(f"the schedule {name} changes all the time, try again")

    # --- looking -----------------------------------------------------------------------------------------------------

    def find(self, name: str) -> ScheduleRecord:
        """Return a schedule. Raises `UnknownTask`."""
        held = self._pool.mirror.get(Kind.SCHEDULE, name)
        return self._known(name, held.value if held is not None and isinstance(held.value, ScheduleRecord) else None)

    def _known(self, name: str, record: ScheduleRecord | None) -> ScheduleRecord:
        if record is None:
            names = ", ".join(one for one, _, _ in schedules(self._pool)) or "none"
            raise UnknownTask(f"this farm knows no schedule {name!r}; it has {names}")
        return record

    def show(self, name: str) -> dict[str, Any]:
        """Return a schedule as the API shows it, but for how its runs have ended. Raises `UnknownTask`."""
        record = self.find(name)
        following = next_time(times_here(record), decided=record.decided, paused=record.paused, now=self._clock.wall())
        return {
            "name": name,
            "cron": record.cron,
            "timezone": record.timezone,
            "overlap": record.overlap.value,
            "project": record.project,
            "paused": record.paused,
            "registered": when(record.registered),
            "next_time": when(following),
            "running": running_plan(self._pool, record) or None,
        }

    async def list(self) -> list[dict[str, Any]]:
        """Return all schedules, each with the latest of its runs."""
        return [
            self.show(name) | {"last_run": await self._shown_run(record.runs[-1]) if record.runs else None}
            for name, record, _ in schedules(self._pool)
        ]

    async def whole(self, name: str) -> dict[str, Any]:
        """Return a schedule with its plan and its latest runs, the newest first. Raises `UnknownTask`."""
        record = self.find(name)
        runs = [await self._shown_run(run) for run in reversed(record.runs)]
        return self.show(name) | {"plan": record.plan, "runs": runs}

    async def _shown_run(self, run: ScheduleRun) -> dict[str, Any]:
        outcome, counts = run.state.value, {}
        if run.state is RunState.SUBMITTED:
            counts = await self._counts(run.plan)
            outcome = _outcome(counts, goes_on=self._pool.num_live(run.plan) > 0)
        return {
            "plan_id": run.plan or None,
            "time": when(run.time),
            "decided": when(run.decided),
            "outcome": outcome,
            "counts": counts,
            "missed": run.missed,
            "by_hand": run.by_hand,
            "reason": run.reason,
        }

    async def _counts(self, plan: str) -> dict[str, int]:
        live = [one.task for one in self._pool.live_tasks() if one.specification.plan == plan]
        ended = await asyncio.to_thread(self._history.outcomes, plan, live)
        counts = Counter(ended)
        for task in live:
            if (still := self._pool.live(task)) is not None:
                counts[self._pool.status(still)] += 1
        return dict(counts)


def _outcome(counts: dict[str, int], *, goes_on: bool) -> str:
    """Return how a run has ended, in a word: that of the worst of its tasks."""
    if goes_on:
        return "running"
    for bad in ("failed", "expired", "skipped", "cancelled"):
        if counts.get(bad):
            return "cancelled" if bad == "cancelled" else "failed"
    return "completed" if counts else "unknown"


def _check(name: str, text: str) -> None:
    if len(name) > MAX_NAME or "/" in name:
        raise SettingsError(
            f"a schedule's name has at most {MAX_NAME} characters and no '/', got {name!r}: set `name:`"
        )
    if len(text) > MAX_TEXT:
        raise SettingsError(
            f"the plan has {len(text)} characters, of which a scheduled one may have {MAX_TEXT}: put what its tasks read into "
            "files"
        )


def _cut_off(old: ScheduleRecord | None) -> tuple[ScheduleRun, ...]:
    """Return the runs of a schedule that is replaced: one that is being submitted cannot go on with another plan."""
    if old is None:
        return ()
    reason = "the schedule was replaced while this was being submitted"
    return tuple(
        replace(run, state=RunState.REFUSED, reason=reason) if run.state is RunState.SUBMITTING else run
        for run in old.runs
    )
