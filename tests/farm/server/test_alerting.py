"""Who is told where a leader dies in the middle of it, or is one no more."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dtf_lightning.clock import SystemClock
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.follower import Follower, RecordChanged, RecordRead
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import LeaderRecord
from dtf_lightning.farm.rules.watching import incidents
from dtf_lightning.farm.rules.watching.alerts import AlertRule, Severity
from dtf_lightning.farm.rules.watching.incidents import AlertOf, Delivery, DeliveryState, Incident, Step
from dtf_lightning.farm.server.alerting import alerting
from dtf_lightning.farm.server.alerting.alerting import Alerting, AlertPlan
from dtf_lightning.farm.server.alerting.sending import HandlerEntry, Sender
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from support.farm.server import DEADLINE

KEYS = FarmKeys("f")
OWED = Incident(
    name="gone",
    opened=1.0,
    severity=Severity.WARNING,
    said=Severity.WARNING,
    steps=1,
    alerts=(AlertOf(rule="gone", subject="w1", reason="it has gone", since=1.0),),
    deliveries=(Delivery(number=1, step=Step.FIRING, handler="hook"),),
)
PLAN = AlertPlan(rules=(AlertRule(name="gone", finding="worker_gone", handlers=("hook",)),))


class Ears:
    """A handler. `then`: what happens when it is told."""

    def __init__(self, then=lambda: None):
        self.keys, self._then = [], then

    def send(self, notice, timeout):
        self.keys.append(notice.key)
        self._then()


def lead(memory, ears, epoch, *, until):
    """Let a leader of this epoch tell what is owed, until the record says so of the delivery, or it has been tried; return what the
    record says then."""

    async def run():
        loop = asyncio.get_running_loop()
        pool, read = Pool(KEYS), asyncio.Event()

        def told(what):
            if isinstance(what, RecordRead):
                pool.load(what.kvs, what.revision)
                read.set()
            elif isinstance(what, RecordChanged):
                pool.apply(what.events)

        follower = Follower(memory, KEYS, lambda what: loop.call_soon_threadsafe(told, what))
        follower.start()
        with FarmRecord(memory, "f", deliver=loop.call_soon_threadsafe) as record:
            sender = Sender({"hook": HandlerEntry(ears, DEADLINE)}, SystemClock())
            leader = Alerting(pool, record, SystemClock(), sender, PLAN, lambda: epoch)
            async with asyncio.timeout(DEADLINE):
                await read.wait()
                job = asyncio.create_task(leader.run())
                while not until(of(pool)):
                    await wait_for_event(asyncio.Event(), 0.01)
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
        await asyncio.to_thread(follower.close)
        return of(pool)

    def of(pool):
        return pool.mirror.get(Kind.ALERT, "gone-1").value.deliveries[0]

    return asyncio.run(run())


@pytest.fixture
def epoch(memory, monkeypatch):
    """Of the leadership that holds."""
    monkeypatch.setattr(alerting, "AGAIN", 0.01)
    monkeypatch.setattr(incidents, "FIRST_PAUSE", 0.01)
    memory.put(KEYS.leader, encode(LeaderRecord(coordinator="c0")))
    memory.put(KEYS.key(Kind.ALERT, "gone-1"), encode(OWED))
    return memory.get(KEYS.leader).create_revision


def test_one_that_dies_between_telling_and_writing_it_down(memory, epoch):
    """The next one tells it again, under the same key, and the one after that not."""
    hanging = threading.Event()
    first, second, third = Ears(lambda: hanging.wait(DEADLINE)), Ears(), Ears()
    claimed = lead(memory, first, epoch, until=lambda one: one.tries == 1 and first.keys)
    hanging.set()
    assert (claimed.state, first.keys) == (DeliveryState.OWED, ["gone-1/1-firing/hook"])
    sent = lead(memory, second, epoch, until=lambda one: one.state is DeliveryState.SENT)
    assert (sent.tries, second.keys) == (2, first.keys)
    lead(memory, third, epoch, until=lambda one: True)
    assert third.keys == []


def test_one_that_leads_no_more(memory, epoch):
    """Its claim is refused, and it says nothing, however often it tries."""
    tries = []

    deposed = Ears()
    writes = memory.txn
    memory.txn = lambda *arguments, **named: (tries.append(1), writes(*arguments, **named))[1]
    try:
        told = lead(memory, deposed, epoch - 1, until=lambda _: len(tries) >= 3)
    finally:
        del memory.txn
    assert (told.tries, deposed.keys) == (0, [])
