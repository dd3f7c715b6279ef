"""`ScheduleKeeper`: submits the plans of schedules at their times, as long as this coordinator leads.

Rules that this file guards:
- A time is decided on by one write, guarded by the leadership and by the schedule as seen, which names the plan that is
  submitted. What is submitted afterwards has ids that are made from that plan's: another leader goes on where this one died.
- What cannot be submitted now (etcd is away, the farm is full) stays in the record and is tried again; what can never be is
  refused, and the reason is kept with the run.
- It looks when a schedule or one of its runs has changed, when a time has come, and at least every `LOOK` seconds, since clocks
  are set.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreError
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.plans.cron import times_of
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.schedules.values import RunState, ScheduleRecord, ScheduleRun
from dtf_lightning.farm.record.schedules.writes import DecideRun, SetSchedule, run_id
from dtf_lightning.farm.rules.submissions.schedules import AfterTime, Due, decide, next_time
from dtf_lightning.farm.server.models import TaskRequest
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.server.schedules.expanding import SentPlan

log = logging.getLogger(__name__)

LOOK = 30.0
AT_ONCE = 1_000
"""Tasks that are submitted together."""
SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10


class Submits(Protocol):
    """What submits tasks, as `Tasks` does."""

    async def submit(self, requests: list[TaskRequest]) -> list[dict[str, Any]]: ...
    async def cancel_plan(self, plan: str, reason: str) -> dict[str, Any]: ...


class ScheduleKeeper:
    """Runs on the coordinator's event loop.

    Args:
        tasks: takes the tasks.
        epoch: returns that of this coordinator's leadership; 0: it does not lead.
    """

    def __init__(self, pool: Pool, record: FarmRecord, tasks: Submits, clock: Clock, epoch: Callable[[], int]) -> None:
        self._pool = pool
        self._record = record
        self._tasks = tasks
        self._clock = clock
        self._epoch = epoch
        self._news = asyncio.Event()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Plan -> what submits it."""
        pool.listeners.append(self._changed)

    async def run(self) -> None:
        """Submit what is due, until cancelled."""
        try:
            while True:
                self._news.clear()
                await self.look()
                await wait_for_event(self._news, self._until_next())
        finally:
            for job in self._jobs.values():
                job.cancel()

    async def look(self) -> None:
        """Decide on what is due now, and go on with what is being submitted. Does nothing where another leads."""
        epoch = self._epoch()
        if not epoch:
            return
        fence = Compare(self._pool.keys.leader, "create", "=", epoch)
        for name, record, revision in schedules(self._pool):
            if (run := self._decided(name, record)) is not None:
                write = DecideRun(name=name, record=record.with_run(run), seen=revision, fence=fence)
                try:
                    decided = await self._record.answer(write)
                except StoreError as error:
                    log.info("schedule %s: %s", name, error)
                    continue
                if decided:  # else the watch shows why not, and it is looked again
                    await self._pool.wait_for_change(Kind.SCHEDULE, name, revision, SHOWN)
        for name, record, _ in schedules(self._pool):
            for run in record.runs:
                if run.state is RunState.SUBMITTING and run.plan not in self._jobs:
                    job = asyncio.create_task(self._submit(name, record, run))
                    self._jobs[run.plan] = job
                    job.add_done_callback(lambda _, plan=run.plan: self._jobs.pop(plan))  # type: ignore[misc]

    async def settle(self) -> None:
        """Wait until what is being submitted is, or was given up for now."""
        while self._jobs:
            await asyncio.wait(list(self._jobs.values()))

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.kind in (Kind.SCHEDULE, Kind.LEADER):
            self._news.set()
        elif change.kind is Kind.TASK and change.after is None and change.before is not None:
            plan = getattr(change.before.value, "plan", "")
            if plan and not self._pool.num_live(plan) and self._pool.mirror.all(Kind.SCHEDULE):
                self._news.set()

    def _until_next(self) -> float:
        now = self._clock.wall()
        times = [
            next_time(times_here(record), decided=record.decided, paused=record.paused, now=now)
            for _, record, _ in (schedules(self._pool) if self._epoch() else ())
        ]
        return min([LOOK, *(max(time - now, 0.01) for time in times if time is not None)])

    def _decided(self, name: str, record: ScheduleRecord) -> ScheduleRun | None:
        running = running_plan(self._pool, record)
        now = self._clock.wall()
        found = decide(
            times_here(record),
            decided=record.decided,
            paused=record.paused,
            overlap=record.overlap,
            goes_on=bool(running),
            now=now,
        )
        if found is None:
            return None
        due: Due = found.due
        if not found.submits:
            reason = f"the last run, {running}, still went on"
            return ScheduleRun(time=due.time, decided=now, state=RunState.SKIPPED, missed=due.missed, reason=reason)
        plan = run_id(name, due.time, now)
        return ScheduleRun(plan=plan, time=due.time, decided=now, state=RunState.SUBMITTING, missed=due.missed)

    async def _submit(self, name: str, record: ScheduleRecord, run: ScheduleRun) -> None:
        try:
            requests = await asyncio.to_thread(_requests, record, run.plan)
            for start in range(0, len(requests), AT_ONCE):
                await self._tasks.submit(requests[start : start + AT_ONCE])
        except (SettingsError, ValueError) as error:
            log.warning("schedule %s: its plan is refused: %s", name, error)
            await self._end(name, run.plan, RunState.REFUSED, str(error))
        except DtfError as error:
            log.warning("schedule %s: its plan cannot be submitted now: %s", name, error)
        else:
            await self._end(name, run.plan, RunState.SUBMITTED)

    async def _end(self, name: str, plan: str, state: RunState, reason: str = "") -> None:
        """Say in the record what became of a run. Where that does not succeed the next look goes on."""
        try:
            if state is RunState.REFUSED:
                await self._tasks.cancel_plan(plan, "the farm refused a part of its plan")
            for _ in range(TRIES):
                held = self._pool.mirror.get(Kind.SCHEDULE, name)
                if held is None:
                    return  # it was removed; its run goes on
                assert isinstance(held.value, ScheduleRecord)
                write = SetSchedule(
                    name=name, record=held.value.with_state(plan, state, reason), seen=held.mod_revision
                )
                made = await self._record.answer(write)
                await self._pool.wait_for_change(Kind.SCHEDULE, name, held.mod_revision, SHOWN if made else 1.0)
                if made:
                    return
        except StoreError as error:
            log.info("schedule %s: %s", name, error)


def schedules(pool: Pool) -> list[tuple[str, ScheduleRecord, int]]:
    """Return all schedules by name, sorted, each with its mod revision."""
    found = []
    for (name,), held in sorted(pool.mirror.all(Kind.SCHEDULE).items()):
        assert isinstance(held.value, ScheduleRecord)
        found.append((name, held.value, held.mod_revision))
    return found


def running_plan(pool: Pool, record: ScheduleRecord) -> str:
    """Return the latest of a schedule's runs that goes on; "" if none does."""
    for run in reversed(record.runs):
        if run.state is RunState.SUBMITTING or (run.plan and pool.num_live(run.plan)):
            return run.plan
    return ""


def times_here(record: ScheduleRecord) -> AfterTime:
    """Return the times of a schedule; none where this machine does not know its zone."""
    try:
        return times_of(record.cron, record.timezone)
    except SettingsError as error:
        log.warning("a schedule has no times here: %s", error)
        return lambda _: None


def _requests(record: ScheduleRecord, plan: str) -> list[TaskRequest]:
    sent = SentPlan(text=record.plan, source=record.source, folder=record.folder, inputs=record.inputs)
    return sent.expand(plan)[1]
