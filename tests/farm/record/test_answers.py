"""What an event loop is told of the record's writes: one future for all that belong together, and none of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record import lane
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.record.writes import LaneName, Submission, Submit, Submitted

TASK = TaskSpecification(command=("x",))
PATIENCE = 60.0


def submits(*tasks: str) -> list[Submit]:
    return [Submit(task=task, specification=TASK) for task in tasks]


@pytest.fixture
def no_futures(monkeypatch):
    """A future of threads costs as much as all else that a write needs here."""

    def refuse() -> None:
        raise AssertionError("a future was made")

    monkeypatch.setattr(lane, "Future", refuse)


@pytest.mark.usefixtures("no_futures")
@pytest.mark.parametrize("delivers", [True, False])
def test_all_answers_come_in_order(delivers):
    """Also where lanes tell them in their own threads; none is missing, and nothing is waited for where there is nothing."""

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        deliver: Callable[..., object] | None = loop.call_soon_threadsafe if delivers else None
        with FarmRecord(MemoryStore(), "f", deliver=deliver) as record:
            tasks = [f"t{number}" for number in range(300)]
            told = await asyncio.wait_for(record.answers(submits(*tasks)), PATIENCE)
            assert told == [Submitted(submission=Submission.NEW, task=task) for task in tasks]
            (again,) = submits("t7")
            assert (await asyncio.wait_for(record.answer(again), PATIENCE)).submission is Submission.KNOWN
            assert await asyncio.wait_for(record.answers([]), PATIENCE) == []

    asyncio.run(ask())


@pytest.mark.usefixtures("no_futures")
def test_what_is_not_made_is_told():
    """Of many, the first that fails."""

    async def ask() -> None:
        store = MemoryStore()
        store.reachable = False
        with (
            FarmRecord(store, "f", deliver=asyncio.get_running_loop().call_soon_threadsafe) as record,
            pytest.raises(StoreUnavailable, match="submit t"),
        ):
            await asyncio.wait_for(record.answers(submits("t1", "t2"), timeout=0.05), PATIENCE)

    asyncio.run(ask())


def test_who_gives_up_takes_the_writes_along():
    """Those that no transaction has taken."""

    async def ask() -> None:
        store = MemoryStore()
        record = FarmRecord(store, "f", deliver=asyncio.get_running_loop().call_soon_threadsafe)  # its lanes rest yet
        waiting = record.answers(submits("t1", "t2"))
        waiting.cancel()
        await asyncio.wait([waiting])
        record.start()
        try:
            told = await asyncio.wait_for(record.answers(submits("t1")), PATIENCE)
            assert told == [Submitted(submission=Submission.NEW, task="t1")]
            assert record.counts()[LaneName.SUBMIT].applied == 1
        finally:
            await asyncio.to_thread(record.close)

    asyncio.run(ask())


def test_a_listener_that_fails_holds_up_no_other(caplog):
    """Its fault is in the log."""

    async def ask() -> None:
        with FarmRecord(MemoryStore(), "f", deliver=asyncio.get_running_loop().call_soon_threadsafe) as record:

            def fail(_: object, __: object) -> None:
                raise RuntimeError("a fault")

            (first,) = submits("t1")
            record.tell(first, fail)
            told = await asyncio.wait_for(record.answers(submits("t2")), PATIENCE)
            assert told[0].submission is Submission.NEW

    asyncio.run(ask())
    assert "submit t1: nobody took what became of it" in caplog.text
