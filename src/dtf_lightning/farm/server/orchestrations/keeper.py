"""`OrchestrationKeeper`: brings jobs that are split over devices to their ends, as long as this coordinator leads.

Rules that this file guards:
- What is to be done next follows from the record alone and from how subtasks ended: a share without a task gets one, under an id that
  is always the same; a share that failed is cut anew; when all have ended, the job has. Any leader goes on from there.
- Submitting twice is submitting once, so that a leader that died between two steps costs nothing.
- Of a job that was cancelled nothing is submitted any more, and what was submitted meanwhile is ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreError
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.orchestrate.progress import COMPLETED, JobStatus, status_of
from dtf_lightning.farm.orchestrate.splitting import Share, tree
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.orchestrations.writes import ForgetOrchestration, SetOrchestration
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.server.models import TaskRequest
from dtf_lightning.farm.server.orchestrations.models import (
    MERGE,
    merge_of,
    request_of,
    rule_of,
    subtask_id,
    subtask_of,
)
from dtf_lightning.farm.server.orchestrations.results import Merging
from dtf_lightning.farm.server.orchestrations.subtasks import jobs, subtasks
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.server.tasks import Tasks

log = logging.getLogger(__name__)

LOOK = 10.0
"""Seconds between two looks at jobs of which nothing is heard."""
PAUSE = 0.2
"""Seconds between two looks at most: what has ended meanwhile is noted by one write."""
SHOWN = 5.0
"""Seconds for the watch to show what was written."""
KEPT = 300
"""Jobs that have ended, in the record."""


class OrchestrationKeeper:
    """Runs on the coordinator's event loop.

    Args:
        of_subtask: returns the job whose task this is; `None` for any other task.
        epoch: returns that of this coordinator's leadership; 0: it does not lead.
    """

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        tasks: Tasks,
        merging: Merging,
        clock: Clock,
        of_subtask: Callable[[str], str | None],
        epoch: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._record = record
        self._tasks = tasks
        self._merging = merging
        self._clock = clock
        self._of_subtask = of_subtask
        self._epoch = epoch
        self._news = asyncio.Event()
        pool.listeners.append(self._changed)

    async def run(self) -> None:
        """Bring jobs on, until cancelled."""
        while True:
            self._news.clear()
            await self.look()
            await wait_for_event(asyncio.Event(), PAUSE)
            await wait_for_event(self._news, LOOK)

    async def look(self) -> None:
        """Bring on each job that has not ended. Does nothing where another leads."""
        epoch = self._epoch()
        if not epoch:
            return
        fence = Compare(self._pool.keys.leader, "create", "=", epoch)
        ended: list[tuple[str, int]] = []
        for name, record, revision in list(jobs(self._pool)):
            if record.ended:
                ended.append((name, revision))
                continue
            try:
                after = await self._brought_on(name, record)
                if after != record:
                    write = SetOrchestration(name=name, record=after, seen=revision, fence=fence)
                    if await self._record.answer(write):  # else the watch shows why not, and it is looked again
                        await self._pool.wait_for_change(Kind.ORCHESTRATION, name, revision, SHOWN)
            except DtfError as error:
                log.info("job %s: %s", name, error)  # for now: the next look tries again
        for name, revision in ended[:-KEPT]:
            try:
                await self._record.answer(ForgetOrchestration(name=name, seen=revision, fence=fence))
            except StoreError as error:
                log.info("job %s: %s", name, error)

    # --- one job ------------------------------------------------------------------------------------------------------

    async def _brought_on(self, name: str, record: OrchestrationRecord) -> OrchestrationRecord:
        """Submit what is missing of a job, and return it with what has ended. Raises what etcd raises, and `TooManyTasks`."""
        ends, missing, live = await self._found(name, record)
        after = replace(record, ends=ends)
        if record.cancelled:
            await asyncio.gather(*(self._tasks.cancel(subtask_id(name, one.key), record.cancel_reason) for one in live))
            after = replace(after, ends={**ends, **{one.key: "cancelled" for one in missing}})
            return self._ended(after, "") if not live else after
        if missing:
            try:
                await self._submit([subtask_of(name, record, request_of(record).task_data, one) for one in missing])
            except (SettingsError, ValueError) as error:
                reason = f"the farm refused a part of it: {error}"
                return replace(after, cancelled=self._clock.wall(), cancel_reason=reason[:1000])
            return after
        return after if live else await self._merged(name, after)

    async def _found(self, name: str, record: OrchestrationRecord) -> tuple[dict[str, str], list[Share], list[Share]]:
        """Return how subtasks ended, which shares have none, and which go on."""
        ends = dict(record.ends)
        while True:
            missing: list[Share] = []
            live: list[Share] = []
            news = False
            for share, _ in list(tree(record.shares, ends, split_anew=record.split_anew and not record.cancelled)):
                if share.key in ends:
                    continue
                task = subtask_id(name, share.key)
                if self._pool.live(task) is not None:
                    live.append(share)
                elif (outcome := await self._tasks.outcome(task)) is not None:
                    ends[share.key] = outcome.value
                    news = True
                else:
                    missing.append(share)
            if not news:  # else some may have to be cut anew
                return ends, missing, live

    async def _submit(self, requests: list[TaskRequest]) -> None:
        now = self._clock.wall()
        await self._tasks.accept({request.task_id: request.specification(now) for request in requests})

    async def _merged(self, name: str, record: OrchestrationRecord) -> OrchestrationRecord:
        """All subtasks of a job have ended: merge by a function of the user's, or say that it has ended."""
        request = request_of(record)
        rule = rule_of(record, request)
        found = subtasks(self._pool, name, record)
        if rule.how == "call" and any(one.counts and one.status == COMPLETED for one in found):
            task = subtask_id(name, MERGE)
            if self._pool.live(task) is not None:
                return record
            outcome = await self._tasks.outcome(task)
            if outcome is None:
                try:
                    parts = await self._merging.parts(record, found)
                    told = [{"name": part.name, "weight": part.weight, "value": part.value} for part in parts]
                    await self._submit([merge_of(name, record, request.task_data, rule.call, told)])
                except (SettingsError, ValueError) as error:
                    return self._ended(record, f"it cannot be merged by {rule.call}: {error}")
                return record
            record = replace(record, ends={**record.ends, MERGE: outcome.value})
            why = "" if outcome.value == COMPLETED else f"the merging by {rule.call} ended as {outcome.value}"
            return self._ended(record, why)
        merged = await self._merging.of(name, record, found)
        return self._ended(record, f"its results cannot be merged: {merged.error}" if merged.error else "")

    def _ended(self, record: OrchestrationRecord, error: str) -> OrchestrationRecord:
        counting = [
            (share, record.ends.get(share.key, "cancelled"))
            for share, counts in tree(record.shares, record.ends, split_anew=record.split_anew)
            if counts
        ]
        status = status_of((end for _, end in counting), cancelled=bool(record.cancelled))
        lost = [f"{share.name} {end}" for share, end in counting if end != COMPLETED]
        if status is JobStatus.FAILED and not error:
            error = f"{len(lost)} of {len(counting)} subtasks did not complete: {', '.join(lost[:10])}"
        if status is JobStatus.COMPLETED and error:
            status = JobStatus.FAILED
        if status is JobStatus.CANCELLED:
            error = record.cancel_reason
        return replace(record, ended=self._clock.wall(), status=status.value, error=error[:2000])

    def _changed(self, change: Change) -> None:
        if change.kind in (Kind.ORCHESTRATION, Kind.LEADER) or (
            change.kind is Kind.TASK and change.after is None and self._of_subtask(change.names[0]) is not None
        ):
            self._news.set()
