"""The asynchronous client, over a real coordinator: as the synchronous one, on an event loop."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.async_client import LOOKS, THREADS, Asked, AsyncClient, AsyncFuture, Followed, _Ends
from dtf_lightning.farm.calls.returned import write_told
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.functions.values import TaskFailed
from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process

BY_HAND = {"close": "aclose", "__enter__": "__aenter__", "ask_for_ends": "wait_for_end"}
"""Of `Client`, what has another name here."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path_factory.mktemp("farm"), settings={"security.allow_pickle": True})
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()
    store.close()


@pytest.fixture
def worker(shared):
    worker = PlayedWorker((shared.url,), read_token(shared.token_file))
    worker.wait_until_welcome()
    yield worker
    worker.close()


def run(shared, test):
    """Run a test's coroutine with a client."""

    async def whole():
        async with AsyncClient(shared.url, shared.token_file) as farm:
            async with asyncio.timeout(DEADLINE):
                await test(farm)

    asyncio.run(whole())


async def next_order(worker):
    return await asyncio.to_thread(worker.next)


def own_threads():
    """Those of asynchronous clients that are there now."""
    return {thread for thread in threading.enumerate() if thread.name.startswith("dtf-farm-async")}


def end(worker, order, value):
    worker.end(order, returned=write_told({"value": value}))


def test_it_has_every_method():
    """A method that `Client` gets is to be named here, too: a coroutine as `Asked`, an iterator as `Followed`."""
    missing = [
        name
        for name, method in vars(Client).items()
        if callable(method) and not name.startswith("_") and not hasattr(AsyncClient, BY_HAND.get(name, name))
    ]
    assert missing == []
    for name, method in vars(AsyncClient).items():
        if isinstance(method, Asked | Followed):
            iterates = inspect.isgeneratorfunction(getattr(Client, name)) or name == "updates"
            assert isinstance(method, Followed) is iterates, name


def test_commands(shared, worker):
    async def test(farm):
        task = await farm.submit(["x"], name="one")
        assert (await farm.task(task)).raw["name"] == "one"
        assert [info.task_id async for info in farm.tasks(name="one")] == [task]
        waiting = asyncio.create_task(farm.wait(task))
        worker.end(await next_order(worker))
        assert (await waiting).status == "completed"
        assert [chunk async for chunk in farm.logs(task)] == []
        with pytest.raises(FarmRefused, match="knows no task"):
            await farm.wait(new_task_id(time.time()))
        others = await farm.map([["y"], ["z"]])
        seen = [await farm.cancel(other) for other in others]
        assert seen == ["cancelled", "cancelled"]
        assert {info.task_id async for info in farm.as_completed(others)} == set(others)
        while not worker.orders.empty():
            worker.orders.get()

    run(shared, test)


def test_functions(shared, worker):
    async def test(farm):
        futures = await farm.map(len, [[1], [2]])
        orders = {}
        for _ in futures:
            order = await next_order(worker)
            orders[order.task] = order
        first, second = futures
        end(worker, orders[second.task_id], 2)
        assert await second == 2
        done, others = await farm.wait(futures, return_when=FIRST_COMPLETED)
        assert (done, others) == ({second}, {first})
        assert not await first.done()
        with pytest.raises(TimeoutError, match=r"has not ended after 0\.01 s"):
            await first.result(timeout=0.01)
        end(worker, orders[first.task_id], 1)
        assert {one async for one in farm.as_completed(futures)} == {first, second}
        assert await farm.results(futures) == [1, 2]
        assert await first.exception() is None

        call = await farm.call("statistics:mean", [1, 2])
        worker.end(await next_order(worker), OutcomeKind.FAILED, reason="ValueError: x")
        with pytest.raises(TaskFailed, match="ValueError: x"):
            await call
        after = await farm.options(after=[call]).submit(len, [1])
        assert await asyncio.to_thread(after.future.exception, DEADLINE) is not None
        third = await farm.submit(len, [1])
        assert await third.cancel()
        with pytest.raises(CancelledError):
            await third
        assert isinstance(third, AsyncFuture)
        while not worker.orders.empty():
            worker.orders.get()

    run(shared, test)


def test_many_that_wait_take_few_threads(shared, worker):
    """A hundred awaited ends are a few questions at a time; those that end late hold up none that ended."""

    async def test(farm):
        before = own_threads()
        plan = new_task_id(time.time())
        futures = await farm.options(plan=plan, needs={"no such thing": 1}).map(len, [[1]] * 100)
        one = await farm.submit(len, [1])
        waiting = [asyncio.ensure_future(future.result()) for future in futures]
        last = asyncio.ensure_future(one.result())
        end(worker, await next_order(worker), 1)
        assert await last == 1
        assert not any(one.done() for one in waiting)
        assert len(own_threads() - before) <= 2 * (THREADS + LOOKS)  # some of those that were alone may be ending
        assert await farm.cancel_plan(plan) == 100
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, CancelledError) for error in ended)

    run(shared, test)


def test_closing_ends_what_waits(shared):
    """Whoever waits is told, and no thread is left."""

    async def test():
        before = own_threads()
        async with AsyncClient(shared.url, shared.token_file) as farm:
            task = await farm.submit(["x"], needs={"no such thing": 1})
            told = [
                asyncio.ensure_future(farm.wait(task)),
                asyncio.ensure_future(anext(farm.as_completed([task]))),
                asyncio.ensure_future(anext(farm.logs(task, follow=True))),
            ]
            while len(farm._alone) < 2:
                await asyncio.sleep(0)
        ended = await asyncio.gather(*told, return_exceptions=True)
        assert all(isinstance(error, FarmUnreachable) for error in ended), ended
        with pytest.raises(FarmUnreachable, match="this client was closed"):
            await farm.wait(task)
        assert own_threads() <= before
        with shared.client() as client:
            client.cancel(task)

    asyncio.run(test())


class TestEnds:
    """What is asked for, of a farm that a test plays."""

    def play(self, test):
        asked = []

        async def look(tasks, timeout):
            answer = asyncio.get_running_loop().create_future()
            asked.append((list(tasks), timeout, answer))
            return await answer

        async def whole():
            async with asyncio.timeout(DEADLINE):
                await test(_Ends(look), asked)

        asyncio.run(whole())

    def test_those_that_begin_together_are_one_question(self):
        async def test(ends, asked):
            waiting = [asyncio.ensure_future(ends.of(str(number))) for number in range(700)]
            again = asyncio.ensure_future(ends.of("0"))
            while len(asked) < 2:
                await asyncio.sleep(0)
            assert [(len(tasks), timeout) for tasks, timeout, _ in asked] == [(500, 0.2), (200, 2.0)]
            asked[0][2].set_result({"ended": [{"task_id": "0"}], "unknown": ["1"]})
            assert await waiting[0] == await again == {"task_id": "0"}
            with pytest.raises(FarmRefused, match="knows no task '1'"):
                await waiting[1]
            while len(asked) < 3:
                await asyncio.sleep(0)
            assert len(asked[2][0]) == 498
            for one in waiting[2:]:
                one.cancel()
            await asyncio.wait(waiting[2:])
            for _, _, answer in asked[1:]:
                answer.set_result({"ended": [], "unknown": []})
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(asked) == 3  # nobody waits any more

        self.play(test)

    def test_one_that_fails_fails_its_own(self):
        async def test(ends, asked):
            one = asyncio.ensure_future(ends.of("a"))
            while not asked:
                await asyncio.sleep(0)
            other = asyncio.ensure_future(ends.of("b"))
            while len(asked) < 2:
                await asyncio.sleep(0)
            asked[0][2].set_exception(FarmUnreachable("gone"))
            with pytest.raises(FarmUnreachable, match="gone"):
                await one
            asked[1][2].set_result({"ended": [{"task_id": "b"}], "unknown": []})
            assert await other == {"task_id": "b"}

        self.play(test)
