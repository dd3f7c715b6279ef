"""Leaders that submit schedules' plans, on a record in memory: each time once, whoever dies in the middle."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.follower import Follower, RecordChanged, RecordRead
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.schedules.values import KEPT_RUNS, RunState, ScheduleRecord
from dtf_lightning.farm.record.values import KeyRecord, LeaderRecord
from dtf_lightning.farm.record.writes import Submission, Submit
from dtf_lightning.farm.rules.submissions.schedules import Overlap
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.schedules.keeper import ScheduleKeeper
from support.farm.results import SetClock

PLAN = "{name: nightly, tasks: {a: {run: a}, b: {run: b, after: a}, c: {run: c}}}"
START = datetime(2027, 1, 31, 2, 29, tzinfo=UTC).timestamp()
TIMEOUT = 20.0
HOUR = 3600.0


class Submitter:
    """Writes tasks as a coordinator does; `dies_after` so many of them nothing more is written."""

    def __init__(self, record: FarmRecord) -> None:
        self._record = record
        self.dies_after: int | None = None
        self.refuses = ""

    async def submit(self, requests):
        told = []
        for request in requests:
            if self.refuses:
                raise SettingsError(self.refuses)
            if self.dies_after == 0:
                raise StoreUnavailable("injected")
            write = Submit(task=request.task_id, specification=request.specification(1.0))
            verdict = await self._record.answer(write)
            self.dies_after = None if self.dies_after is None else self.dies_after - 1
            told.append({"task_id": verdict.task, "submission": verdict.submission.value})
        return told

    async def cancel_plan(self, plan, reason):
        return {}


class Coordinator:
    """The parts of one that schedules need."""

    def __init__(self, store, clock) -> None:
        self.record = FarmRecord(store, "f", deliver=asyncio.get_running_loop().call_soon_threadsafe)
        self.record.start()
        self.pool, self.tasks, self.epoch = Pool(self.record.keys), Submitter(self.record), 0
        self.keeper = ScheduleKeeper(self.pool, self.record, self.tasks, clock, lambda: self.epoch)
        loop, self.ready = asyncio.get_running_loop(), asyncio.Event()
        self.follower = Follower(store, self.record.keys, lambda told: loop.call_soon_threadsafe(self._told, told))
        self.follower.start()

    def _told(self, told) -> None:
        if isinstance(told, RecordRead):
            self.pool.load(told.kvs, told.revision)
            self.ready.set()
        elif isinstance(told, RecordChanged):
            self.pool.apply(told.events)

    async def look(self) -> None:
        await self.keeper.look()
        await self.keeper.settle()

    async def close(self) -> None:
        await asyncio.to_thread(self.follower.close)
        await asyncio.to_thread(self.record.close)


class Farm:
    """Coordinators on one record, and a clock that the test sets."""

    def __init__(self) -> None:
        self.store, self.clock, self.coordinators = MemoryStore(), SetClock(START), []

    async def coordinator(self) -> Coordinator:
        made = Coordinator(self.store, self.clock)
        self.coordinators.append(made)
        async with asyncio.timeout(TIMEOUT):
            await made.ready.wait()
        return made

    async def lead(self, coordinator: Coordinator) -> None:
        """It leads from now on; who led before does not know it yet."""
        key = coordinator.record.keys.leader
        self.store.delete(key)
        self.store.put(key, encode(LeaderRecord(coordinator="c")))
        coordinator.epoch = self.store.get(key).create_revision
        await self.shown(coordinator)

    async def shown(self, *coordinators: Coordinator) -> None:
        """Until they have heard all that is in the record."""
        revision = self.store.put("/dtf/farm/f/keys/mark", encode(KeyRecord(task="t")))
        for one in coordinators or self.coordinators:
            assert await one.pool.wait_for("mark", lambda one=one: one.pool.mirror.revision >= revision, TIMEOUT)

    async def register(self, **fields) -> None:
        told = {"plan": PLAN, "cron": "30 2 * * *", "registered": START, "decided": START} | fields
        self.store.put("/dtf/farm/f/schedules/nightly", encode(ScheduleRecord(**told)))
        await self.shown()

    @property
    def schedule(self) -> ScheduleRecord:
        return decode(Kind.SCHEDULE, self.store.get("/dtf/farm/f/schedules/nightly").value)

    def tasks(self) -> dict[str, list[str]]:
        """Plan -> names of its tasks that are there."""
        found: dict[str, list[str]] = {}
        for kv in self.store.range("/dtf/farm/f/tasks/").kvs:
            value = decode(Kind.TASK, kv.value)
            found.setdefault(value.plan, []).append(value.name)
        return {plan: sorted(names) for plan, names in found.items()}

    async def finish(self) -> None:
        """All tasks are done."""
        for kv in self.store.range("/dtf/farm/f/tasks/").kvs:
            self.store.delete(kv.key)
        await self.shown()


@asynccontextmanager
async def farm():
    made = Farm()
    try:
        yield made
    finally:
        for one in made.coordinators:
            await one.close()
        made.store.close()


def test_submits_at_its_time_and_once():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register()
            await leader.look()
            assert it.tasks() == {}
            it.clock.now = START + 60
            await leader.look()
            await leader.look()
            (run,) = it.schedule.runs
            assert (run.state, run.time, run.missed) == (RunState.SUBMITTED, START + 60, 0)
            assert it.tasks() == {run.plan: ["a", "b", "c"]}
            await it.finish()
            await leader.look()
            it.clock.now += 23 * HOUR
            await leader.look()
            assert len(it.schedule.runs) == 1

    asyncio.run(play())


@pytest.mark.parametrize("written", range(4))
def test_the_next_leader_goes_on_where_one_died(written):
    """After the decision, and after any number of its tasks."""

    async def play():
        async with farm() as it:
            first, second = await it.coordinator(), await it.coordinator()
            await it.lead(first)
            await it.register()
            it.clock.now = START + 90
            first.tasks.dies_after = written
            await first.look()
            await it.lead(second)
            it.clock.now += 30
            await second.look()
            (run,) = it.schedule.runs
            assert run.state is RunState.SUBMITTED
            assert it.tasks() == {run.plan: ["a", "b", "c"]}

    asyncio.run(play())


def test_one_that_is_deposed_decides_nothing():
    """It was frozen, and its mirror is of before: its decision has the fence of its leadership."""

    async def play():
        async with farm() as it:
            old, new = await it.coordinator(), await it.coordinator()
            await it.lead(old)
            await it.register()
            it.clock.now = START + 60
            await it.lead(new)
            await old.look()
            assert it.schedule.runs == ()
            await new.look()
            await old.look()
            (run,) = it.schedule.runs
            assert it.tasks() == {run.plan: ["a", "b", "c"]}

    asyncio.run(play())


def test_two_that_both_believe_to_lead():
    """Neither the fence nor the schedule as seen lets a time be decided on twice."""

    async def play():
        async with farm() as it:
            one, other = await it.coordinator(), await it.coordinator()
            await it.lead(one)
            other.epoch = one.epoch
            await it.register()
            it.clock.now = START + 60
            await asyncio.gather(one.look(), other.look())
            await asyncio.gather(one.look(), other.look())
            assert len(it.schedule.runs) == len(it.tasks()) == 1

    asyncio.run(play())


def test_missed_times_are_caught_up_once_and_told():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="0 * * * *")
            it.clock.now = START + 5.1 * HOUR
            await leader.look()
            (run,) = it.schedule.runs
            assert (run.time, run.missed) == (START + 60 + 4.5 * HOUR, 4)
            assert len(it.tasks()) == 1

    asyncio.run(play())


def test_a_time_is_skipped_while_the_last_run_goes_on():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="*/10 * * * *")
            for _ in range(3):
                it.clock.now += 600
                await leader.look()
            first, *others = it.schedule.runs
            assert [run.state for run in others] == [RunState.SKIPPED] * 2
            assert others[0].reason == f"the last run, {first.plan}, still went on"
            assert list(it.tasks()) == [first.plan]
            await it.finish()
            it.clock.now += 600
            await leader.look()
            assert it.schedule.runs[-1].state is RunState.SUBMITTED

    asyncio.run(play())


def test_a_time_waits_in_a_queue_of_one():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="*/10 * * * *", overlap=Overlap.QUEUE)
            for _ in range(3):
                it.clock.now += 600
                await leader.look()
            assert len(it.schedule.runs) == 1
            await it.finish()
            await leader.look()
            last = it.schedule.runs[-1]
            assert (last.state, last.missed) == (RunState.SUBMITTED, 1)
            assert list(it.tasks()) == [last.plan]

    asyncio.run(play())


def test_a_plan_that_is_refused_is_told_and_the_next_time_comes():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="*/10 * * * *")
            it.clock.now += 600
            leader.tasks.refuses = "no project is called 'vision'"
            await leader.look()
            await it.register(**{name: getattr(it.schedule, name) for name in ("cron", "decided", "runs")})
            (run,) = it.schedule.runs
            assert (run.state, run.reason) == (RunState.REFUSED, "no project is called 'vision'")
            leader.tasks.refuses = ""
            it.clock.now += 600
            await leader.look()
            assert it.schedule.runs[-1].state is RunState.SUBMITTED

    asyncio.run(play())


def test_the_loop_wakes_for_a_run_that_has_ended():
    """Nothing but the end of the last run's tasks tells that one that waits may start."""

    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="*/10 * * * *", overlap=Overlap.QUEUE)
            it.clock.now += 600
            await leader.look()
            it.clock.now += 600
            job = asyncio.create_task(leader.keeper.run())
            await it.finish()
            assert await leader.pool.wait_for("nightly", lambda: len(it.schedule.runs) == 2, TIMEOUT)
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)

    asyncio.run(play())


def test_history_is_bounded():
    async def play():
        async with farm() as it:
            leader = await it.coordinator()
            await it.lead(leader)
            await it.register(cron="*/10 * * * *")
            for _ in range(KEPT_RUNS + 3):
                it.clock.now += 600
                await leader.look()
            assert len(it.schedule.runs) == KEPT_RUNS
            assert it.schedule.decided == it.clock.now // 600 * 600

    asyncio.run(play())


def test_a_task_that_was_submitted_already_is_no_conflict():
    """What both leaders submit for a run is the same, so that the record has it once."""

    async def play():
        async with farm() as it:
            one, other = await it.coordinator(), await it.coordinator()
            await it.lead(one)
            await it.register()
            it.clock.now = START + 60
            one.tasks.dies_after = 2
            await one.look()
            told = []
            submit = other.tasks.submit

            async def listen(requests):
                told.extend(await submit(requests))
                return told

            other.tasks.submit = listen
            await it.lead(other)
            await other.look()
            submissions = sorted(one["submission"] for one in told)
            assert submissions == [Submission.KNOWN.value, Submission.KNOWN.value, Submission.NEW.value]

    asyncio.run(play())
