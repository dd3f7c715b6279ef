"""`Coordinator`: one server process of a farm. It holds no truth: everything here can die at any time.

Threads: one event loop (HTTP, sockets, mirror, leader), one for each lane of the record, one for its watch, one for the
lease. etcd is never waited for on the loop.

Rules that this file guards:
- It leads while its own leader key is what the mirror shows, under the lease that it holds; what it decides bears that
  leadership's fence.
- Crash-only: a fault in taking in a change or in deciding ends the process, since a leader with a broken picture must
  not lead on. Whoever started it starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import cached_property
from typing import Any

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.follower import Follower, FollowerFailed, RecordChanged, RecordRead
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.server.clients.standing import Standing
from dtf_lightning.farm.server.cluster.cluster import Cluster
from dtf_lightning.farm.server.cluster.view import leader_of, show_status
from dtf_lightning.farm.server.leading import Leading, LeadingSettings
from dtf_lightning.farm.server.outside.workers import OutsideWorkers
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace
from dtf_lightning.farm.server.scheduling.history import keep_expecting, known_results
from dtf_lightning.farm.server.tasks import SubmissionLimits, Tasks
from dtf_lightning.farm.server.updates.changes import Updates
from dtf_lightning.farm.server.upkeep.stores import make_stores, refuse_other_hosts
from dtf_lightning.farm.server.upkeep.upkeep import Upkeep
from dtf_lightning.farm.server.workers import WorkerConnections

log = logging.getLogger(__name__)

READY_TIMEOUT = 30.0


class Coordinator:
    """Runs on one event loop: `await start()`, then `await run()` until `stop()`.

    Args:
        store: etcd; stays its owner's.
        place: who and where.
    """

    def __init__(self, store: Store, place: CoordinatorPlace) -> None:
        loop = asyncio.get_running_loop()
        self._clock = SystemClock()
        self._place = place
        self.record = FarmRecord(store, place.farm, deliver=loop.call_soon_threadsafe)
        self.pool = Pool(self.record.keys)
        self.connections = WorkerConnections(place.name, self.pool, self.record)
        self.history, files = make_stores(store, self.record, place)
        self.upkeep = Upkeep(
            store, self.record, files, self.pool, place, epoch=lambda: self._leading.epoch, clock=self._clock
        )
        self.tasks = Tasks(
            self.pool,
            self.record,
            store,
            files,
            self._clock,
            self._explain,
            self.history.envelope,
            limits=SubmissionLimits(
                max_live=place.settings.task_scheduler.max_queue_size,
                ids=place.settings.retention.ids,
                refusal=lambda: self.upkeep.refusal,
                allow_pickle=place.settings.security.allow_pickle,
            ),
        )
        self.updates = Updates(self.pool, self._clock.wall)
        self.pool.listeners += [self._changed, self.history.take]
        self.outside = OutsideWorkers(
            place.name, self.pool, self.record, self._clock, self.connections.record_result, self.connections.health
        )
        self._follower = Follower(store, self.record.keys, lambda told: _call(loop, self._told, told))
        self.cluster = Cluster(
            store,
            self.record,
            self.pool,
            place,
            self.updates,
            self._clock,
            led=self._leadership_changed,
            close_workers=self.connections.close,
        )
        self._leading = Leading(
            self.pool,
            self.record,
            self._clock,
            settings=LeadingSettings(
                grace=place.settings.health_monitor.worker_grace, strategy=place.settings.load_balancer.strategy
            ),
            look_up=self.tasks.look_up,
            tally=self.tasks.tally,
            known=lambda asked: known_results(self.history, files, asked, self._clock.wall()),
            fail=self._fail,
        )
        self._ready: asyncio.Future[None] = loop.create_future()
        self._fault: asyncio.Future[None] = loop.create_future()

    @property
    def version(self) -> str:
        """The package's."""
        return self._place.version

    @cached_property
    def standing(self) -> Standing:
        """What goes on by itself: schedules, and jobs that are split over devices."""
        return Standing(
            self.pool, self.record, self.tasks, self.history, self.updates, self._clock, self._place.settings
        )

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.wall()

    @property
    def leads(self) -> bool:
        """Whether it decides now."""
        return self._leading.leads

    async def start(self) -> None:
        """Read the record and appear in it. Raises `DtfError` if etcd does not answer in time, or the results do not open.

        Raises `SettingsError` where coordinators on other hosts could not find its files.
        """
        self.standing.listen()
        await asyncio.to_thread(self.history.open)
        self.record.start()
        self._follower.start()
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await self._ready
            refuse_other_hosts(self.pool, self._place)
        except SettingsError:
            await self._leave()
            raise
        except TimeoutError:
            await asyncio.to_thread(self.history.close)
            raise StoreUnavailable(f"the farm's record could not be read within {READY_TIMEOUT:.0f} s") from None

    async def run(self) -> None:
        """Serve until `stop`. Raises the fault that ended it."""
        self.cluster.take_over(lambda nonce: self.connections.holds(nonce) or self.outside.holds(nonce))
        jobs = [
            asyncio.create_task(job)
            for job in (
                self.cluster.presence.stay(),
                self.cluster.beat(),
                self._leading.run(),
                self.upkeep.run(self.history, lambda: self.cluster.etcd),
                self.standing.keep(lambda: self._leading.epoch),
                keep_expecting(self.history, self.pool, self._leading.expect, self.upkeep.scaler.expect),
            )
        ]
        try:
            await asyncio.wait([*jobs, self._fault], return_when=asyncio.FIRST_COMPLETED)
            for job in [*jobs, self._fault]:
                if job.done():
                    job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await self._leave()

    def stop(self) -> None:
        """End `run`: hand over the leadership and the workers."""
        if not self._fault.done():
            self._fault.set_result(None)

    def status(self) -> dict[str, Any]:
        """The farm's numbers, as the API shows them."""
        counts: dict[str, int] = {}
        for live in self.pool.live_tasks():
            status = self.pool.status(live)
            counts[status] = counts.get(status, 0) + 1
        workers = self.pool.workers()
        return {
            "farm": self._place.farm,
            "coordinator": self._place.name,
            "leader": leader_of(self.pool.mirror)[0],
            "version": self._place.version,
            "revision": self.pool.mirror.revision,
            "tasks": counts,
            "workers": len(workers),
            "workers_connected_here": self.connections.num_connected,
            "results": self.history.status(),
            "room": self.upkeep.status(),
            "warnings": [self._place.warning] if self._place.warning else [],
            "uptime_seconds": round(time.monotonic() - self._place.began, 1),
        }

    def cluster_status(self) -> dict[str, Any]:
        """Who leads and who is there, in the words of the requirements."""
        return show_status(self.pool.mirror, self.cluster.etcd, self.now())

    # --- what the record shows ---------------------------------------------------------------------------------------

    def _told(self, told: RecordRead | RecordChanged | FollowerFailed) -> None:
        try:
            if isinstance(told, FollowerFailed):
                raise told.error
            if isinstance(told, RecordRead):
                with self.updates.reading() as restart:
                    self.pool.load(told.kvs, told.revision)
                    restart(told.revision)
                self.history.read_again()
                if not self._ready.done():
                    self._ready.set_result(None)
            else:
                self.pool.apply(told.events)
                self.updates.taken_in(self.pool.mirror.revision)
        except Exception as error:
            log.exception("the record cannot be taken in")
            self._fail(error)

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.LEADER:
            self._leadership_changed()
        self.cluster.changed(change)
        self._leading.changed(change)
        if change.kind is Kind.TASK and change.after is None:
            self.upkeep.task_ended()
            self.tasks.forget_output(change.names[0])

    def _leadership_changed(self) -> None:
        """The record shows another leader, or a campaign is won, or the lease is lost."""
        held = self.pool.mirror.get(Kind.LEADER)
        epoch = held.create_revision if held is not None else 0
        led, ours = self._leading.leads, epoch == self.cluster.presence.epoch
        self._leading.lead(epoch if ours else 0)
        if self._leading.leads and not led:
            self.cluster.leads(epoch)
        self.history.lead(self.leads)

    def _explain(self, task: str) -> str | None:
        return self._leading.explain(task)

    async def _leave(self) -> None:
        self._leading.lead(0)
        self.cluster.close()
        self.outside.close()
        await self.connections.close()
        await self.cluster.presence.leave()
        await asyncio.to_thread(self.history.close)
        await asyncio.to_thread(self.record.close)
        await asyncio.to_thread(self._follower.close)

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._fault.done():
            self._fault.set_exception(error if isinstance(error, Exception) else DtfError(repr(error)))


def _call(loop: asyncio.AbstractEventLoop, function: Any, *arguments: Any) -> None:
    """Call something on a loop, from another thread, unless the loop has ended."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        log.debug("the event loop has ended")
