"""`Orchestrations`: what clients may ask of jobs that are split over devices: submit, look, wait, cancel.

Rules that this file guards:
- A job is in the record before any of its subtasks, and then it is never lost: what is missing of it the leader submits.
- What is told of a job is made of its record and its subtasks, at any coordinator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.farm.orchestrate.devices import Measured, Offer, by_what_can_be_steered, seats
from dtf_lightning.farm.orchestrate.splitting import Split, Strategy, split
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.orchestrations.writes import SetOrchestration
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.orchestrations.speeds import measured
from dtf_lightning.farm.results.store import ResultsBusy
from dtf_lightning.farm.server.clients.keys import OtherRequest
from dtf_lightning.farm.server.orchestrations.models import OrchestrateRequest, asked_of, subtask_of
from dtf_lightning.farm.server.orchestrations.results import Merged, Merging
from dtf_lightning.farm.server.orchestrations.showing import summary, whole
from dtf_lightning.farm.server.orchestrations.subtasks import job_of, subtasks
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import Tasks, UnknownTask
from dtf_lightning.farm.settings.orchestrator import OrchestratorSettings

log = logging.getLogger(__name__)

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
WRITE = 3.0
TRIES = 10


class Orchestrations:
    """Runs on the coordinator's event loop."""

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        tasks: Tasks,
        history: History,
        clock: Clock,
        settings: OrchestratorSettings,
    ) -> None:
        self.merging = Merging(tasks)
        self._pool = pool
        self._record = record
        self._tasks = tasks
        self._history = history
        self._clock = clock
        self._settings = settings

    async def submit(self, request: OrchestrateRequest, plan: str = "") -> dict[str, Any]:
        """Accept a job, and return its id, how it is split, and why so. Again under its id: it is one job.

        Raises `SettingsError` for a job that cannot be, `OtherRequest` for another one under its id, and what `Tasks.accept`
        raises but for a farm that is full for now: the leader submits what is missing.
        """
        if not self._settings.enabled:
            raise SettingsError(
                "this farm splits no jobs: `multi_device_orchestrator.enabled` of its settings is false"
            )
        name = request.task_id or new_task_id(self._clock.wall())
        self._tasks.check_id(name)
        record = job_of(self._pool, name) or await self._accepted(name, request, plan)
        if record.asked != asked_of(request):
            raise OtherRequest(f"another job was submitted under the id {name}")
        return {
            "task_id": name,
            "name": record.name,
            "strategy": record.strategy.value,
            "reason": record.reason,
            "num_subtasks": len(record.shares),
            "message": f"Task orchestrated with strategy: {record.strategy.value}",
        }

    async def check(self, request: OrchestrateRequest) -> None:
        """Raise `SettingsError` for a job that cannot be split."""
        await self._split(request)

    async def _accepted(self, name: str, request: OrchestrateRequest, plan: str) -> OrchestrationRecord:
        made = await self._split(request)
        record = self._recorded(request, made, plan)
        now = self._clock.wall()
        try:
            requests = [subtask_of(name, record, request.task_data, share) for share in record.shares]
        except ValueError as error:
            raise SettingsError(f"its subtasks cannot be: {error}") from None
        specifications = {one.task_id: one.specification(now) for one in requests}
        self._tasks.check_possible(specifications)
        if request.strict:
            self._tasks.check_able(specifications)
        if not await self._record.answer(SetOrchestration(name=name, record=record, seen=0), timeout=WRITE):
            await self._pool.wait_for(name, lambda: job_of(self._pool, name) is not None, SHOWN)
            if (other := job_of(self._pool, name)) is None:
                raise StoreUnavailable(f"this coordinator has not heard of the job {name} yet: ask again")
            return other
        await self._pool.wait_for(name, lambda: job_of(self._pool, name) is not None, SHOWN)
        try:
            tasks = list(zip(record.shares, specifications.items(), strict=True))
            first, rest = tasks[: made.first], tasks[made.first :]
            labelled = [one for one in first if one[0].label]
            for wave in (labelled, [one for one in first if not one[0].label], rest):
                if wave:  # of what is accepted together nobody can say which comes first
                    await self._tasks.accept(dict(one for _, one in wave))
        except SettingsError:
            await self.cancel(name, "the farm refused a part of it")
            raise
        except DtfError as error:
            log.info("job %s: %s; the leader goes on", name, error)
        return record

    def _recorded(self, request: OrchestrateRequest, made: Split, plan: str) -> OrchestrationRecord:
        asked, own = request, self._settings
        again = own.retry_failed_subtasks if asked.retry_failed_subtasks is None else asked.retry_failed_subtasks
        limit = own.retry_limit if asked.retry_limit is None else asked.retry_limit
        return OrchestrationRecord(
            asked=asked_of(request),
            project=request.task_data.project,
            plan=plan,
            name=request.task_data.title,
            strategy=made.strategy,
            reason=made.reason,
            shares=made.shares,
            priority=own.default_priority if asked.priority is None else asked.priority,
            timeout=own.subtask_timeout if asked.subtask_timeout is None else asked.subtask_timeout,
            retries=limit if again else 0,
            split_anew=again and made.strategy is Strategy.DATA_PARALLEL,
            submitted=self._clock.wall(),
        )

    async def _split(self, request: OrchestrateRequest) -> Split:
        data = request.task_data
        offers = {
            name: Offer(devices=worker.devices, labels=worker.labels)
            for name, worker in self._pool.workers().items()
            if worker.coordinator and not worker.cordoned
        }
        known = await asyncio.to_thread(self._measured, data.project, data.title) if data.inputs else []
        found = by_what_can_be_steered(seats(offers, data.alternatives, known))
        return split(request.strategy, data.job, found)

    def _measured(self, project: str, job: str) -> list[Measured]:
        try:
            return self._history.ask(lambda results: measured(results, project, job))
        except ResultsBusy as error:
            log.info("how fast workers are is not known: %s", error)
            return []

    # --- looking ------------------------------------------------------------------------------------------------------

    async def show(self, name: str, wait: float = 0.0, *, partial: bool = False) -> dict[str, Any]:
        """Return a job with its subtasks, and its result when it has ended; with `wait` then, or after so many seconds.

        `partial`: with the result of what has completed, also before.

        Raises `UnknownTask`, what etcd raises, and `ResultsBusy`.
        """
        if wait:
            await self._pool.wait_for(name, lambda: (job := job_of(self._pool, name)) is None or job.ended > 0, wait)
        record = self._known(name)
        found = subtasks(self._pool, name, record)
        wanted = record.ended or partial
        merged = await self.merging.of(name, record, found) if wanted else Merged(partial=True)
        return whole(self._pool, name, record, found, merged)

    def find(self, name: str) -> Mapping[str, Any]:
        """Return a job without its result. Raises `UnknownTask`."""
        return summary(self._pool, name, self._known(name))

    def _known(self, name: str) -> OrchestrationRecord:
        record = job_of(self._pool, name)
        if record is None:
            raise UnknownTask(f"this farm knows no orchestrated task {name!r}")
        return record

    # --- cancelling ---------------------------------------------------------------------------------------------------

    async def cancel(self, name: str, reason: str) -> dict[str, Any]:
        """End a job with all its subtasks. Raises `UnknownTask`, and what etcd raises."""

        def cancelled(record: OrchestrationRecord) -> OrchestrationRecord:
            if record.ended or record.cancelled:
                return record
            return replace(record, cancelled=self._clock.wall(), cancel_reason=reason[:1000])

        record = await self._change(name, cancelled)
        if record.ended:
            return {"task_id": name, "cancellation": "finished", "status": record.status}
        live = [one.task for one in subtasks(self._pool, name, record) if self._pool.live(one.task) is not None]
        await asyncio.gather(*(self._tasks.cancel(task, reason) for task in live))
        return {"task_id": name, "cancellation": "cancelled", "num_cancelled": len(live)}

    async def cancel_plan(self, plan: str, reason: str) -> None:
        """End all jobs that came with a plan. Raises what etcd raises."""
        for (name,), held in list(self._pool.mirror.all(Kind.ORCHESTRATION).items()):
            assert isinstance(held.value, OrchestrationRecord)
            if plan in (name, held.value.plan) and not held.value.ended:
                await self.cancel(name, reason)

    async def _change(
        self, name: str, changed: Callable[[OrchestrationRecord], OrchestrationRecord]
    ) -> OrchestrationRecord:
        """Write what `changed` makes of a job, whoever changes it besides; returns that."""
        for _ in range(TRIES):
            old = self._known(name)
            record, seen = changed(old), self._pool.mirror.seen(Kind.ORCHESTRATION, name)
            if record == old:
                return old
            made = await self._record.answer(SetOrchestration(name=name, record=record, seen=seen), timeout=WRITE)
            await self._pool.wait_for_change(Kind.ORCHESTRATION, name, seen, SHOWN if made else 1.0)
            if made:
                return record
        raise StoreUnavailable(f"the job {name} changes all the time, try again")
