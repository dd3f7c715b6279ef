"""`Scaler`: the leader starts and drains workers as `rules.scaling` says, or with `scaling.dry_run` only says what it would do.

Data flow: tasks and workers -> `seeing` -> `books.taken_on` -> `decide` -> the pool's record, fenced -> the provider, or the
workers' records, fenced.

Rules that this file guards:
- What is asked of a provider stands in the record first, by a write with the leadership's fence: who was deposed asks for nothing,
  and what one leader has asked for the next one counts, and asks for again by the same names where the provider's answer
  is not known.
- One call of a provider at a time for a pool; nobody waits for it but that pool.
- Workers are drained by their records: what runs on them ends by itself.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, StoreError
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.recovery.writes import ChangeWorkerByFarm
from dtf_lightning.farm.record.scaling.values import PoolRecord
from dtf_lightning.farm.record.scaling.writes import SetPool
from dtf_lightning.farm.record.values import WorkerState
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.scaling.decision import PoolDecision, decide
from dtf_lightning.farm.rules.scaling.load import PoolLoad, PoolShape, Unserved, loads_of
from dtf_lightning.farm.rules.scaling.observation import SeenPool
from dtf_lightning.farm.rules.scaling.windows import limits_at
from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.server.scaling.books import asked_for, given, let_go, refused, taken_on
from dtf_lightning.farm.server.scaling.seeing import SeenFarm, see_farm, see_others, see_workers
from dtf_lightning.farm.settings.pools import POOL_LABEL, PoolSettings

log = logging.getLogger(__name__)

WRITE = 5.0
SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
COUNTED = 60.0
"""Seconds after which what was spent is written, if nothing else is."""
SLACK = 5.0


@dataclass(frozen=True, kw_only=True)
class FarmPool:
    """A pool of the settings."""

    name: str
    settings: PoolSettings
    provider: Provider

    @property
    def label(self) -> str:
        """Which its workers carry."""
        return f"{POOL_LABEL}{self.name}"

    @property
    def shape(self) -> PoolShape:
        """What its workers have."""
        told = self.settings
        most = max([told.maximum, *(window.maximum or 0 for window in told.windows)])
        labels = (*told.labels, self.label)
        return PoolShape(name=self.name, devices=told.amounts, labels=labels, cost=told.cost, maximum=most)


@dataclass(frozen=True, kw_only=True)
class Here:
    """Where workers find this farm."""

    coordinator: str
    token_file: str
    ca: str = ""


@dataclass(kw_only=True)
class SeenNow:
    """The last look."""

    at: float
    pools: dict[str, SeenPool] = field(default_factory=dict)
    decisions: dict[str, PoolDecision] = field(default_factory=dict)
    unserved: list[Unserved] = field(default_factory=list)


class Scaler:
    """Runs on the coordinator's event loop.

    Args:
        leads: returns the epoch of this coordinator's leadership; 0: it does not lead.
        dry_run: whether it only says what it would do.
    """

    def __init__(
        self,
        record: FarmRecord,
        pool: Pool,
        clock: Clock,
        pools: list[FarmPool],
        here: Here,
        *,
        epoch: Callable[[], int],
        dry_run: bool,
    ) -> None:
        self.expectations = Expectations()
        """How long tasks take, as far as it is known."""
        self.pools = pools
        self.dry_run = dry_run
        self.seen = SeenNow(at=0.0)
        self._record = record
        self._pool = pool
        self._clock = clock
        self._here = here
        self._epoch = epoch
        self._idle: dict[str, float] = {}
        """Worker of a pool -> since when it has been seen without a task."""
        self._jobs: dict[str, asyncio.Task[None]] = {}
        """Pool -> the call of its provider."""

    async def run(self, interval: float) -> None:
        """Look every `interval` seconds, until cancelled."""
        try:
            while True:
                try:
                    await self.look()
                except DtfError as error:
                    log.warning("the farm is not scaled now: %s", error)
                await wait_for_event(asyncio.Event(), interval)
        finally:
            for job in self._jobs.values():
                job.cancel()

    async def look(self) -> None:
        """Look once, and do what follows if this coordinator leads. Raises what etcd raises."""
        now, names = self._clock.wall(), [one.name for one in self.pools]
        farm = await see_farm(self._pool, self.expectations, now)
        loads, unserved = loads_of([one.shape for one in self.pools], farm.waiting, see_others(self._pool, names))
        self._note_idle(farm, now)
        look = SeenNow(at=now, unserved=unserved)
        for one in self.pools:
            before, revision = self.record_of(one.name)
            workers = see_workers(self._pool, one.name, farm, self._idle, now)
            books = taken_on(
                before,
                [worker.name for worker in workers],
                now,
                names=one.provider.names,
                start_within=one.settings.start_within,
                seconds_cost=one.settings.limits.seconds_cost,
            )
            seen = _seen(one, workers, books, loads[one.name], now)
            look.pools[one.name], look.decisions[one.name] = seen, (decision := decide(seen))
            epoch = self._epoch()
            if epoch and not self.dry_run and one.name not in self._jobs:
                fence = Compare(self._pool.keys.leader, "create", "=", epoch)
                await self._act(one, before, books, revision, decision, fence)
        self.seen = look

    def expect(self, expectations: Expectations) -> None:
        """How long tasks take, as history has it now."""
        self.expectations = expectations

    @property
    def calls(self) -> list[asyncio.Task[None]]:
        """Of providers, that have not been answered."""
        return list(self._jobs.values())

    def record_of(self, pool: str) -> tuple[PoolRecord, int]:
        """A pool's record, and its mod revision; 0 if there is none."""
        held = self._pool.mirror.get(Kind.SCALING, pool)
        if held is None:
            return PoolRecord(), 0
        assert isinstance(held.value, PoolRecord)
        return held.value, held.mod_revision

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _note_idle(self, farm: SeenFarm, now: float) -> None:
        there = self._pool.workers()
        self._idle = {name: self._idle.get(name, now) for name in there if name not in farm.used}

    async def _act(
        self, one: FarmPool, before: PoolRecord, books: PoolRecord, seen: int, decision: PoolDecision, fence: Compare
    ) -> None:
        now, after = self._clock.wall(), books
        if decision.start:
            names = [f"{one.name}-{secrets.token_hex(3)}" for _ in range(decision.start)]
            after = asked_for(after, names, decision.reason, now)
        if decision.drain:
            after = let_go(after, decision.drain, decision.reason, now, ends=one.provider.ends)
        if _worth_writing(before, after):
            write = SetPool(pool=one.name, record=after, seen=seen, fence=fence)
            if not await self._record.answer(write, timeout=WRITE):
                log.info("pool %s: it has changed, or another coordinator leads; it is looked at again", one.name)
                return
            await self._pool.wait_for_change(Kind.SCALING, one.name, seen, SHOWN)
        if decision.start or decision.drain:
            log.warning(
                "pool %s: %d are started, %d drained: %s",
                one.name,
                decision.start,
                len(decision.drain),
                decision.reason,
            )
        for name in decision.drain:
            await self._let_go(name, fence, cordon=one.provider.ends)
        names_to_start = tuple(order.name for order in after.orders if not order.given)
        if names_to_start:
            self._call(one, names_to_start, len(after.members) + len(after.orders))
        elif one.provider.ends and (over := self._over(one, before)):
            self._call(one, over, len(after.members) + len(after.orders) - len(over), end=True)

    async def _let_go(self, name: str, fence: Compare, *, cordon: bool) -> None:
        """One that has just changed is looked at again with the next look."""
        present, seen = self._pool.workers().get(name), self._pool.mirror.seen(Kind.WORKER, name)
        if present is not None:
            changed = replace(present, cordoned=True) if cordon else replace(present, state=WorkerState.DRAINING)
            write = ChangeWorkerByFarm(worker=name, what="let go", record=changed, seen=seen, fence=fence)
            await self._record.answer(write, timeout=WRITE)

    def _over(self, one: FarmPool, before: PoolRecord) -> tuple[str, ...]:
        """The last workers of a pool that were let go before this look and have nothing to run."""
        over: list[str] = []
        workers = {name: record for name, record in self._pool.workers().items() if one.label in record.labels}
        for name in reversed(before.members):
            record = workers.get(name)
            if record is None or not record.cordoned or name not in before.ending or name not in self._idle:
                break
            over.append(name)
        return tuple(over)

    def _call(self, one: FarmPool, names: tuple[str, ...], total: int, *, end: bool = False) -> None:
        job = asyncio.create_task(self._ask(one, names, total, end=end))
        self._jobs[one.name] = job
        job.add_done_callback(lambda done: self._called(one.name, done))

    def _called(self, pool: str, done: asyncio.Task[None]) -> None:
        del self._jobs[pool]
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("pool %s: its provider could not be asked", pool, exc_info=error)

    async def _ask(self, one: FarmPool, names: tuple[str, ...], total: int, *, end: bool) -> None:
        wanted = WorkersWanted(
            pool=one.name,
            names=names,
            total=total,
            devices=one.settings.amounts,
            labels=(*one.settings.labels, one.label),
            coordinator=self._here.coordinator,
            token_file=one.settings.token_file or self._here.token_file,
            ca=self._here.ca,
            timeout=one.settings.timeout,
        )
        problem = ""
        try:
            async with asyncio.timeout(one.settings.timeout + SLACK):
                await asyncio.to_thread(one.provider.end if end else one.provider.start, wanted)
        except ProviderFailed as error:
            problem = str(error)
        except TimeoutError:
            problem = f"the provider has not answered within {one.settings.timeout:g} s"
        if problem:
            log.warning("pool %s: %s", one.name, problem)
        if problem or not end:
            await self._note(one.name, names, problem)

    async def _note(self, pool: str, names: tuple[str, ...], problem: str) -> None:
        """Write what a provider has answered. Where that does not succeed the next look asks again, by the same names."""
        try:
            for _ in range(TRIES):
                epoch = self._epoch()
                before, seen = self.record_of(pool)
                if not epoch:
                    return
                after = refused(before, names, problem, self._clock.wall()) if problem else given(before, names)
                fence = Compare(self._pool.keys.leader, "create", "=", epoch)
                made = await self._record.answer(
                    SetPool(pool=pool, record=after, seen=seen, fence=fence), timeout=WRITE
                )
                await self._pool.wait_for_change(Kind.SCALING, pool, seen, SHOWN if made else 1.0)
                if made:
                    return
        except StoreError as error:
            log.info("pool %s: %s", pool, error)


def _seen(one: FarmPool, workers: list[Any], books: PoolRecord, load: PoolLoad, now: float) -> SeenPool:
    local = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(one.settings.timezone))
    return SeenPool(
        limits=limits_at(one.settings.limits, one.settings.windows, local),
        workers=tuple(workers),
        starting=len(books.orders),
        beside=load.beside,
        waiting=load.waiting,
        backlog=load.backlog,
        width=load.width,
        widest=load.widest,
        oldest=load.oldest,
        since_start=now - books.started,
        since_drain=now - books.drained,
        retry_in=max(books.retry - now, 0.0) if books.failures else 0.0,
        problem=books.problem,
        spent=books.spent,
    )


def _worth_writing(before: PoolRecord, after: PoolRecord) -> bool:
    alike = replace(after, spent=before.spent, day=before.day, counted=before.counted)
    return alike != before or (after.spent != before.spent and after.counted - before.counted >= COUNTED)
