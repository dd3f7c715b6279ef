"""What a coordinator knows, and who waits for a change."""

from __future__ import annotations

import asyncio

import pytest

from dtf_lightning.errors import CoordinatorEnds
from dtf_lightning.etcd.store import EventKind, KeyValue, WatchEvent
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.server.pool import Pool

KEYS = FarmKeys("f")


def event(kind: EventKind, key: str, value: bytes, revision: int) -> WatchEvent:
    return WatchEvent(kind, KeyValue(key, value, create_revision=revision, mod_revision=revision, version=1, lease=0))


def test_a_task_that_is_over_at_once_has_been_shown():
    """It is accepted and done within one batch of the watch: whoever waits for it to be shown goes on at once."""

    async def wait() -> None:
        pool = Pool(KEYS)
        waits = asyncio.Event()

        def has_shown() -> bool:
            waits.set()
            return pool.has_shown("t")

        shown = asyncio.create_task(pool.wait_for("t", has_shown, 30.0))
        await waits.wait()
        task = KEYS.key(Kind.TASK, "t")
        envelope = Envelope(outcome=TaskOutcome.COMPLETED, attempt=1, revision=2)
        pool.apply(
            [
                event(EventKind.PUT, task, encode(TaskSpecification(command=("x",))), 1),
                event(EventKind.PUT, KEYS.key(Kind.DONE, "t"), encode(envelope), 3),
                event(EventKind.DELETE, task, b"", 3),
            ]
        )
        assert await shown
        assert pool.live("t") is None
        assert await pool.wait_for("t", lambda: pool.has_shown("t"), 30.0), "who comes later knows it, too"

    asyncio.run(wait())


def test_nobody_waits_for_a_coordinator_that_ends():
    """Who waits is told so, at once and from then on; what holds already is answered."""

    async def wait() -> None:
        pool = Pool(KEYS)
        waits = asyncio.Event()

        def never() -> bool:
            waits.set()
            return False

        waiting = asyncio.create_task(pool.wait_for("t", never, 3600.0))
        await waits.wait()
        pool.close()
        with pytest.raises(CoordinatorEnds, match="ask another one"):
            await waiting
        with pytest.raises(CoordinatorEnds):
            await pool.wait_for("t", never, 3600.0)
        assert await pool.wait_for("t", lambda: True, 3600.0)

    asyncio.run(wait())
