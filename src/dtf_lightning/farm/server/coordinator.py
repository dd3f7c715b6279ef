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
import math
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import DtfError, OutcomeUnknown, StoreError, StoreUnavailable
from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.store import Lease, Store
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.follower import Follower, FollowerFailed, RecordChanged, RecordRead
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import CoordinatorRecord, LeaderRecord
from dtf_lightning.farm.record.writes import Assign, Decision, Write
from dtf_lightning.farm.rules.scheduling.first_fit import FirstFit
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.leader import NEVER, Leader, Now
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import Tasks
from dtf_lightning.farm.server.workers import WorkerConnections

log = logging.getLogger(__name__)

LEASE_TTL = 2.0
GRACE = 4.0
"""Seconds for which a worker may be without a connection before its attempts are taken back."""
PAUSE = 0.3
"""Seconds before etcd is asked again that did not answer."""
BATCH = 500
"""Placements of one decision."""
MAX_IN_FLIGHT = 2_000
"""Assignments that wait for etcd, above which no more are decided."""
READY_TIMEOUT = 30.0


@dataclass(frozen=True, kw_only=True)
class CoordinatorPlace:
    """Who a coordinator is and where."""

    farm: str
    name: str
    address: str
    """Where workers and clients reach it, such as `http://127.0.0.1:8080`."""
    folder: Path
    """Of the farm's files, which all its coordinators share."""
    version: str


class Coordinator:
    """Runs on one event loop: `await start()`, then `await run()` until `stop()`.

    Args:
        store: etcd; stays its owner's.
        place: who and where.
    """

    def __init__(self, store: Store, place: CoordinatorPlace) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = SystemClock()
        self._store = store
        self._place = place
        self._began = time.monotonic()
        self.record = FarmRecord(store, place.farm, deliver=self._loop.call_soon_threadsafe)
        self.pool = Pool(self.record.keys)
        self.connections = WorkerConnections(place.name, self.pool, self.record)
        self.tasks = Tasks(self.pool, self.record, store, FarmFiles(place.folder), self._clock, self._explain)
        self.pool.listeners.append(self._changed)
        self._follower = Follower(store, self.record.keys, lambda told: self._call(self._told, told))
        self._election = Election(store, self.record.keys.leader)
        self._lease: Lease | None = None
        self._won = 0
        """The epoch that our last campaign ended with, if we won it."""
        self._leader: Leader | None = None
        self._in_flight = 0
        self._work = asyncio.Event()
        """There is something for the leader to decide, or for the campaign to look at."""
        self._campaigning = asyncio.Event()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._fault: asyncio.Future[None] = self._loop.create_future()
        self._stopping = asyncio.Event()

    @property
    def version(self) -> str:
        """The package's."""
        return self._place.version

    @property
    def leads(self) -> bool:
        """Whether it decides now."""
        return self._leader is not None

    async def start(self) -> None:
        """Read the record and appear in it. Raises `DtfError` if etcd does not answer in time."""
        self.record.start()
        self._follower.start()
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                await self._ready
        except TimeoutError:
            raise StoreUnavailable(f"the farm's record could not be read within {READY_TIMEOUT:.0f} s") from None

    async def run(self) -> None:
        """Serve until `stop`. Raises the fault that ended it."""
        jobs = [asyncio.create_task(job) for job in (self._stay_present(), self._decide_on(), self._stopped())]
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
        self._stopping.set()

    def status(self) -> dict[str, Any]:
        """The farm's numbers, as the API shows them."""
        counts: dict[str, int] = {}
        for live in self.pool.live_tasks():
            status = "pending" if not live.attempt.workers else "running" if live.started else "assigned"
            counts[status] = counts.get(status, 0) + 1
        workers = self.pool.workers()
        return {
            "farm": self._place.farm,
            "coordinator": self._place.name,
            "leader": self._leader_name(),
            "version": self._place.version,
            "tasks": counts,
            "workers": len(workers),
            "workers_connected_here": self.connections.num_connected,
            "uptime_seconds": round(time.monotonic() - self._began, 1),
        }

    def cluster_status(self) -> dict[str, Any]:
        """Who leads and who is there, in the words of the requirements."""
        leader = self._leader_name()
        held = self.pool.mirror.get(Kind.LEADER)
        term = held.create_revision if held is not None else 0
        coordinators = self.pool.coordinators()
        nodes = [
            {
                "node_id": name,
                "state": "leader" if name == leader else "follower" if record.enabled else "offline",
                "term": term,
                "address": record.address,
            }
            for name, record in coordinators.items()
        ]
        return {
            "leader_id": leader,
            "current_term": term,
            "nodes": nodes,
            "cluster_health": "healthy" if leader in coordinators else "critical",
        }

    # --- what the record shows ---------------------------------------------------------------------------------------

    def _call(self, function: Any, *arguments: Any) -> None:
        """Call something on the loop, from another thread, unless the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            log.debug("the event loop has ended")

    def _told(self, told: RecordRead | RecordChanged | FollowerFailed) -> None:
        try:
            if isinstance(told, FollowerFailed):
                raise told.error
            if isinstance(told, RecordRead):
                self.pool.load(told.kvs, told.revision)
                if not self._ready.done():
                    self._ready.set_result(None)
            else:
                self.pool.apply(told.events)
        except Exception as error:
            log.exception("the record cannot be taken in")
            self._fail(error)

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.LEADER:
            self._leader_changed()
        elif self._leader is not None:
            self._leader.changed(change, self._now())
        if change.kind is Kind.TASK and change.after is None:
            self.tasks.forget_output(change.names[0])
        if self._leader is not None:
            self._work.set()

    def _leader_changed(self) -> None:
        held = self.pool.mirror.get(Kind.LEADER)
        epoch = held.create_revision if held is not None else 0
        if self._leader is not None and self._leader.epoch != epoch:
            log.info("%s leads no more", self._place.name)
            self._leader = None
        if epoch and epoch == self._won and self._leader is None and self._lease is not None:
            self._leader = Leader(self.pool.mirror, self.record.keys, epoch, FirstFit(), grace=GRACE, now=self._now())
            log.info("%s leads, epoch %d", self._place.name, epoch)
            self._work.set()
        self._campaigning.set()

    def _explain(self, task: str) -> str | None:
        return self._leader.explain(task, self._clock.wall()) if self._leader is not None else None

    def _leader_name(self) -> str:
        held = self.pool.mirror.get(Kind.LEADER)
        return held.value.coordinator if held is not None and isinstance(held.value, LeaderRecord) else ""

    # --- presence and election ---------------------------------------------------------------------------------------

    async def _stay_present(self) -> None:
        """Hold a lease with our record under it, and campaign whenever nobody leads."""
        while True:
            try:
                lease = await asyncio.to_thread(self._appear)
            except StoreError as error:
                log.warning("etcd gives no lease: %s", error)
                await asyncio.sleep(PAUSE)
                continue
            self._lease = lease
            while not lease.lost:
                self._campaigning.clear()
                if self.pool.mirror.get(Kind.LEADER) is None:
                    await self._campaign(lease)
                if self.pool.mirror.get(Kind.LEADER) is not None or lease.lost:
                    await self._campaigning.wait()
                else:
                    await self._wait_for(self._campaigning, PAUSE)
            log.warning("%s lost its lease", self._place.name)
            self._lease, self._leader, self._won = None, None, 0

    def _appear(self) -> Lease:
        lease = self._store.lease(LEASE_TTL, on_lost=lambda: self._call(self._campaigning.set))
        record = CoordinatorRecord(address=self._place.address, version=self._place.version)
        try:
            key = self.record.keys.key(Kind.COORDINATOR, self._place.name)
            self._store.put(key, encode(record), lease=lease.id)
        except StoreError:
            lease.revoke()
            raise
        return lease

    async def _campaign(self, lease: Lease) -> None:
        value = encode(LeaderRecord(coordinator=self._place.name))
        try:
            leadership = await asyncio.to_thread(self._election.try_acquire, value, lease.id)
        except StoreError as error:
            log.info("campaign: %s", error)
            await asyncio.sleep(PAUSE)
            return
        if leadership.lease == lease.id:
            self._won = leadership.epoch
            self._leader_changed()  # the watch may have been quicker than the answer

    async def _leave(self) -> None:
        self._leader = None
        await self.connections.close()
        if self._lease is not None:
            await asyncio.to_thread(self._lease.revoke)
        await asyncio.to_thread(self.record.close)
        await asyncio.to_thread(self._follower.close)

    # --- leading -----------------------------------------------------------------------------------------------------

    async def _decide_on(self) -> None:
        while True:
            self._work.clear()
            leader = self._leader
            timeout: float | None = None
            if leader is not None:
                now = self._now()
                room = min(BATCH, MAX_IN_FLIGHT - self._in_flight)
                writes = leader.decide(max(room, 0), now)
                for write in writes:
                    self._make(leader, write)
                self._look_up(leader)
                if len(writes) >= BATCH:
                    self._work.set()
                monotonic, wall = leader.next_deadline()
                until = min(monotonic - now.monotonic, wall - now.wall)
                timeout = None if until == NEVER else max(until, 0.01)
            await self._wait_for(self._work, timeout)

    def _make(self, leader: Leader, write: Write[Any]) -> None:
        future = self.record.write(write)
        self._in_flight += 1

        def made(done: Future[Any]) -> None:
            self._in_flight -= 1
            if self._in_flight < MAX_IN_FLIGHT:
                self._work.set()
            error = done.exception()
            if isinstance(error, OutcomeUnknown) or (error is not None and not isinstance(error, StoreError)):
                self._fail(error)
            elif isinstance(write, Assign) and leader is self._leader:
                if error is not None or done.result() is Decision.DEPOSED:
                    leader.refused(write.task)
            elif error is not None:
                log.warning("%s", error)

        future.add_done_callback(made)

    def _look_up(self, leader: Leader) -> None:
        for name in leader.take_lookups():
            job = asyncio.create_task(self._look_up_one(leader, name))
            job.add_done_callback(self._looked_up)

    async def _look_up_one(self, leader: Leader, task: str) -> None:
        while leader is self._leader:
            try:
                key = self.record.keys.key(Kind.TASK, task)
                there = await asyncio.to_thread(self._store.get, key)
                outcome = await self.tasks.outcome(task)
            except StoreError as error:
                log.info("looking up %s: %s", task, error)
                await asyncio.sleep(PAUSE)
                continue
            if leader is self._leader and (there is None or outcome is not None):
                leader.looked_up(task, outcome)
                self._work.set()
            return

    def _looked_up(self, job: asyncio.Task[None]) -> None:
        if not job.cancelled() and (error := job.exception()) is not None:
            self._fail(error)

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if not self._fault.done():
            self._fault.set_exception(error if isinstance(error, Exception) else DtfError(repr(error)))

    def _now(self) -> Now:
        return Now(self._clock.monotonic(), self._clock.wall())

    async def _stopped(self) -> None:
        await self._stopping.wait()

    @staticmethod
    async def _wait_for(event: asyncio.Event, timeout: float | None) -> None:
        try:
            async with asyncio.timeout(timeout if timeout is None or math.isfinite(timeout) else None):
                await event.wait()
        except TimeoutError:
            return
