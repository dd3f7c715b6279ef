"""`Leading`: makes what the leader decides, as long as this coordinator leads.

Rules that this file guards:
- A decision is written with the fence of the leadership that made it; another leader's are not made in its name.
- It decides when the record has changed, when a deadline has come, and when there is room for more assignments.
- A write whose outcome nobody can tell ends the coordinator: its leader's picture may be wrong.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import OutcomeUnknown, StoreError
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import TaskOutcome, TaskSpecification
from dtf_lightning.farm.record.writes import Decision, Write
from dtf_lightning.farm.rules.arrays import Tally
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.server.leader import Leader, Now
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import PAUSE, wait_for_event
from dtf_lightning.farm.server.scheduling.reserving import Reserving
from dtf_lightning.farm.server.scheduling.reuse import Answers
from dtf_lightning.farm.strategies import strategy_named

log = logging.getLogger(__name__)

BATCH = 500
"""Placements of one decision."""
MAX_IN_FLIGHT = 2_000
"""Writes that wait for etcd, above which no more is decided."""

LookUp = Callable[[str], Awaitable[tuple[bool, TaskOutcome | None]]]
"""Returns whether a task is there and not done, and how it ended if it is done."""
AskHistory = Callable[[Mapping[str, TaskSpecification]], Answers]
"""Returns results that may stand for those of some tasks; called in a thread."""


@dataclass(frozen=True, kw_only=True)
class LeadingSettings:
    """How a leader decides."""

    grace: float = 4.0
    """Seconds for which a worker may be without a connection before its attempts are taken back."""
    strategy: str = "fair_share"
    """Name of the one that chooses workers."""


class Leading:
    """Runs on the coordinator's event loop.

    Args:
        settings: how it decides.
        look_up: asks etcd about a task; raises what etcd raises.
        tally: says how an array's instances ended, of which there are so many; raises what etcd raises.
        known: asks history about tasks that take results which are known.
        fail: is called with a fault that must end the coordinator.
    """

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        clock: Clock,
        *,
        settings: LeadingSettings,
        look_up: LookUp,
        tally: Callable[[str, int], Awaitable[Tally]],
        known: AskHistory,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._pool = pool
        self._record = record
        self._clock = clock
        strategy_named(settings.strategy)  # an unknown one is told before it leads
        self._settings = settings
        self._expectations = Expectations()
        self._ask = look_up
        self._count = tally
        self._known = known
        self._fail = fail
        self._leader: Leader | None = None
        self._reserving: Reserving | None = None
        """Of the leader."""
        self._in_flight = 0
        self._work = asyncio.Event()
        """There is something for the leader to decide."""
        self._jobs: set[asyncio.Task[None]] = set()

    @property
    def leads(self) -> bool:
        """Whether this coordinator decides now."""
        return self._leader is not None

    @property
    def epoch(self) -> int:
        """Of the leadership by which this coordinator decides; 0: it does not."""
        return self._leader.epoch if self._leader is not None else 0

    def lead(self, epoch: int) -> None:
        """The mirror shows our leader key of this epoch, or no such key any more: 0."""
        if self._leader is not None and self._leader.epoch != epoch:
            log.warning("leads no more")
            self._leader = None
        if epoch and self._leader is None:
            scheduler = ShapeScheduler(strategy_named(self._settings.strategy))
            self._reserving = Reserving(self._pool.mirror, scheduler)
            self._leader = Leader(
                self._pool.mirror,
                self._record.keys,
                epoch,
                scheduler,
                grace=self._settings.grace,
                now=self._now(),
                expectations=self._expectations,
            )
            log.info("leads, epoch %d", epoch)
            self._work.set()

    def changed(self, change: Change) -> None:
        """The mirror shows a change, of anything but the leader."""
        if self._leader is not None and change.kind is not Kind.LEADER:
            self._leader.changed(change, self._now())
            if change.kind is Kind.RESERVATION and self._reserving is not None:
                self._reserving.changed()
            self._work.set()

    def expect(self, expectations: Expectations) -> None:
        """How long tasks take, as history has it now."""
        self._expectations = expectations
        if self._leader is not None:
            self._leader.expectations = expectations

    def explain(self, task: str) -> str | None:
        """Say why a task does not run; `None` where another coordinator leads."""
        return self._leader.explain(task, self._clock.wall()) if self._leader is not None else None

    async def run(self) -> None:
        """Decide whenever there is something to decide, until cancelled."""
        while True:
            self._work.clear()
            leader = self._leader
            timeout: float | None = None
            if leader is not None:
                now = self._now()
                if self._reserving is not None:
                    fence = Compare(self._pool.keys.leader, "create", "=", leader.epoch)
                    for request in self._reserving.look(now.wall, fence):
                        self._make(leader, request)
                room = min(BATCH, MAX_IN_FLIGHT - self._in_flight)
                writes = leader.decide(max(room, 0), now)
                for write in writes:
                    self._make(leader, write)
                self._look_up(leader)
                if asked := leader.take_reuses():
                    self._start(self._ask_history(leader, asked))
                for array, revision in leader.take_tallies():
                    self._start(self._tally_one(leader, array, revision))
                if len(writes) >= BATCH:
                    self._work.set()
                monotonic, wall = leader.next_deadline()
                if self._reserving is not None:
                    wall = min(wall, self._reserving.deadline)
                until = min(monotonic - now.monotonic, wall - now.wall)
                timeout = max(until, 0.01) if math.isfinite(until) else None
            await wait_for_event(self._work, timeout)

    def _make(self, leader: Leader, write: Write[Any]) -> None:
        def made(verdict: Any, error: Exception | None) -> None:
            self._in_flight -= 1
            if self._in_flight < MAX_IN_FLIGHT:
                self._work.set()
            if isinstance(error, OutcomeUnknown) or (error is not None and not isinstance(error, StoreError)):
                self._fail(error)
            elif error is not None:
                log.warning("%s", error)
                leader.not_made(write)  # one that is deposed by now is not asked any more
            elif verdict is Decision.DEPOSED:
                log.info("another leads; the watch will show it")

        self._record.tell(write, made)
        self._in_flight += 1

    def _look_up(self, leader: Leader) -> None:
        for name in leader.take_lookups():
            self._start(self._look_up_one(leader, name))

    def _start(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._looked_up)

    async def _tally_one(self, leader: Leader, array: str, revision: int) -> None:
        while leader is self._leader and (live := self._pool.live(array)) is not None:
            try:
                tally = await self._count(array, live.specification.array)
            except StoreError as error:
                log.info("counting the instances of %s: %s", array, error)
                await wait_for_event(asyncio.Event(), PAUSE)
                continue
            if leader is self._leader:
                leader.tallied(array, revision, tally, self._now())
                self._work.set()
            return

    async def _ask_history(self, leader: Leader, asked: Mapping[str, TaskSpecification]) -> None:
        answers = await asyncio.to_thread(self._known, asked)
        if leader is self._leader:
            leader.reuses_told(asked, answers, self._now())
            self._work.set()

    async def _look_up_one(self, leader: Leader, task: str) -> None:
        while leader is self._leader:
            try:
                live, outcome = await self._ask(task)
            except StoreError as error:
                log.info("looking up %s: %s", task, error)
                await wait_for_event(asyncio.Event(), PAUSE)
                continue
            if leader is self._leader and (outcome is not None or not live):
                leader.looked_up(task, outcome)
                self._work.set()
            return

    def _looked_up(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            self._fail(error)

    def _now(self) -> Now:
        return Now(self._clock.monotonic(), self._clock.wall())
