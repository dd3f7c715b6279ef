"""`AsyncClient`: `Client` for programs on an event loop. `dtf_lightning.farm.AsyncClient`.

    from dtf_lightning.farm import AsyncClient

    async with AsyncClient() as farm:
        futures = await farm.map(simulate, range(10))
        async for done in farm.as_completed(futures):
            print(await done)

Rules that this file guards:
- There is one client: what is asked of a farm, how it is asked again, and what its answers mean is `client.py`'s. This file has
  it done in threads; a method here is a line that names the one there.
- No number of awaited tasks takes more threads: they are waited for together (`_Ends`). Whatever else takes long (an iteration, a
  wait for many futures) has a thread of its own for that time, so that nothing short waits for it.
- An end of the program waits for nobody: `aclose` interrupts what its threads wait for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ALL_COMPLETED, Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from dtf_lightning.farm.client import ASKED_AT_ONCE, Client, TaskInfo, unknown_task
from dtf_lightning.farm.functions.calls import Calls
from dtf_lightning.farm.functions.future import DoneAndNotDone, Future
from dtf_lightning.farm.http import FarmUnreachable

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

THREADS = 4
"""For what is answered at once."""
LOOKS = 4
"""Questions after the ends of tasks that are on their way at a time; each has a thread."""
LOOK = 2.0
"""Seconds after which one that has no answer is asked again, with the tasks that have come meanwhile."""
CROWDED = 0.2
"""The same while there are more tasks than all of them ask for."""
CLOSED = "this client was closed"
_END = object()


class Asked(Generic[P, R]):
    """A method of `Client` as a coroutine."""

    def __init__(self, method: Callable[Concatenate[Client, P], R]) -> None:
        self.__doc__ = method.__doc__
        self._method = method

    def __get__(self, farm: AsyncClient, _: object = None) -> Callable[P, Coroutine[Any, Any, R]]:
        def ask(*arguments: P.args, **named: P.kwargs) -> Coroutine[Any, Any, R]:
            return farm.in_thread(lambda: self._method(farm.client, *arguments, **named))

        return ask


class Followed(Generic[P, R]):
    """A method of `Client` that iterates as an asynchronous iterator."""

    def __init__(self, method: Callable[Concatenate[Client, P], Iterator[R]]) -> None:
        self.__doc__ = method.__doc__
        self._method = method

    def __get__(self, farm: AsyncClient, _: object = None) -> Callable[P, AsyncIterator[R]]:
        def follow(*arguments: P.args, **named: P.kwargs) -> AsyncIterator[R]:
            return farm.follow(lambda: self._method(farm.client, *arguments, **named))

        return follow


class AsyncFuture(Generic[R]):
    """The value, to be, of a call: `await` it, or ask as of a `Future`. Its methods raise what those of `Future` do."""

    def __init__(self, farm: AsyncClient, future: Future[R]) -> None:
        self.future = future
        """The same for threads."""
        self._farm = farm

    def __repr__(self) -> str:
        return repr(self.future)

    def __await__(self) -> Generator[Any, None, R]:
        return self.result().__await__()

    @property
    def task_id(self) -> str:
        """Of the task that is the call."""
        return self.future.task_id

    @property
    def name(self) -> str:
        """Of the function."""
        return self.future.name

    async def result(self, timeout: float | None = None) -> R:
        """See `Future.result`."""
        value, error = await self._outcome(timeout)
        if error is not None:
            raise error
        return cast("R", value)

    async def exception(self, timeout: float | None = None) -> BaseException | None:
        """See `Future.exception`."""
        await self._outcome(timeout)
        return self.future.exception()

    async def done(self) -> bool:
        """See `Future.done`."""
        return await self._farm.in_thread(self.future.done)

    async def running(self) -> bool:
        """See `Future.running`."""
        return await self._farm.in_thread(self.future.running)

    async def cancelled(self) -> bool:
        """See `Future.cancelled`."""
        return await self._farm.in_thread(self.future.cancelled)

    async def cancel(self) -> bool:
        """See `Future.cancel`."""
        return await self._farm.alone(self.future.cancel)

    async def _outcome(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        if self.future.ended is None:
            self.future.take(await self._farm.wait_for_end(self.task_id, timeout))
        return await self._farm.in_thread(self.future.outcome)


class AsyncCalls:
    """Submits calls with the same fields. Returned by `AsyncClient.options`."""

    def __init__(self, farm: AsyncClient, calls: Calls) -> None:
        self._farm = farm
        self._calls = calls

    async def submit(self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs) -> AsyncFuture[R]:
        """See `Calls.submit`."""
        return AsyncFuture(
            self._farm, await self._farm.in_thread(lambda: self._calls.submit(function, *arguments, **named))
        )

    async def map(self, function: Callable[..., R], /, *iterables: Iterable[Any], **named: Any) -> list[AsyncFuture[R]]:
        """See `Calls.map`."""
        found = await self._farm.alone(lambda: self._calls.map(function, *iterables, **named))
        return [AsyncFuture(self._farm, future) for future in found]

    async def call(self, function: str, /, *arguments: Any, **named: Any) -> AsyncFuture[Any]:
        """See `Calls.call`."""
        return AsyncFuture(
            self._farm, await self._farm.in_thread(lambda: self._calls.call(function, *arguments, **named))
        )


class AsyncClient:
    """`Client`, for one event loop: its methods are coroutines, and its iterators asynchronous ones.

    Args and what is raised: as `Client`. `client` is the one that it asks by, for what stands still.
    """

    def __init__(
        self, url: str | None = None, token_file: str | Path | None = None, *, ca: str | Path | None = None
    ) -> None:
        self.client = Client(url, token_file, ca=ca)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="dtf-farm-async")
        self._looking = ThreadPoolExecutor(LOOKS, thread_name_prefix="dtf-farm-async-ends")
        self._alone: set[ThreadPoolExecutor] = set()
        self._ends = _Ends(self._look)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections; what still waits for the farm raises `FarmUnreachable`. Idempotent."""
        self.client.connection.interrupt()
        self._ends.close()
        threads = [self._threads, self._looking, *self._alone]
        await asyncio.get_running_loop().run_in_executor(None, _end_all, threads)
        self.client.connection.close_all()

    # --- how it is done ----------------------------------------------------------------------------------------------

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what is answered at once."""
        return await _run(self._threads, work)

    async def alone(self, work: Callable[[], T]) -> T:
        """Do what may take long, in a thread of its own."""
        with self._a_thread() as thread:
            return await _run(thread, work)

    async def follow(self, begin: Callable[[], Iterator[T]]) -> AsyncIterator[T]:
        """Yield what an iterator yields, in a thread of its own."""
        with self._a_thread() as thread:
            items = await _run(thread, begin)
            try:
                while (item := await _run(thread, lambda: next(items, cast("T", _END)))) is not _END:
                    yield item
            finally:
                close: Callable[[], object] = getattr(items, "close", lambda: None)
                try:
                    thread.submit(close)  # behind the item that it may be waiting for; nobody waits for that here
                except RuntimeError:  # the client is closed, and the thread has ended
                    close()

    @contextlib.contextmanager
    def _a_thread(self) -> Generator[Executor]:
        thread = ThreadPoolExecutor(1, thread_name_prefix="dtf-farm-async-one")
        self._alone.add(thread)
        try:
            yield thread
        finally:
            with contextlib.suppress(RuntimeError):  # the client is closed
                thread.submit(self.client.close).add_done_callback(lambda _: self._alone.discard(thread))
            thread.shutdown(wait=False)

    async def _look(self, tasks: Sequence[str], timeout: float) -> Mapping[str, Any]:
        return await _run(self._looking, lambda: self.client.ask_for_ends(tasks, timeout))

    # --- submitting --------------------------------------------------------------------------------------------------

    @overload
    def submit(self, command: Sequence[str], /, **fields: Any) -> Coroutine[Any, Any, str]: ...

    @overload
    def submit(
        self, function: Callable[P, R], /, *arguments: P.args, **named: P.kwargs
    ) -> Coroutine[Any, Any, AsyncFuture[R]]: ...

    def submit(self, what: Any, /, *arguments: Any, **named: Any) -> Any:
        """See `Client.submit`."""
        if callable(what):
            return self.options().submit(what, *arguments, **named)
        return self.in_thread(lambda: self.client.submit(what, *arguments, **named))

    @overload
    def map(self, commands: Sequence[Sequence[str]], /, **fields: Any) -> Coroutine[Any, Any, list[str]]: ...

    @overload
    def map(
        self, function: Callable[..., R], /, *iterables: Iterable[Any], **named: Any
    ) -> Coroutine[Any, Any, list[AsyncFuture[R]]]: ...

    def map(self, what: Any, /, *iterables: Iterable[Any], **named: Any) -> Any:
        """See `Client.map`."""
        if callable(what):
            return self.options().map(what, *iterables, **named)
        return self.alone(lambda: self.client.map(what, *iterables, **named))

    def options(self, **fields: Any) -> AsyncCalls:
        """See `Client.options`."""
        named = {
            key: [one.future if isinstance(one, AsyncFuture) else one for one in value]
            for key, value in fields.items()
            if key in ("after", "after_any")
        }
        return AsyncCalls(self, self.client.options(**fields | named))

    async def call(self, function: str, /, *arguments: Any, **named: Any) -> AsyncFuture[Any]:
        """See `Client.call`."""
        return await self.options().call(function, *arguments, **named)

    train = Asked(Client.train)
    submit_all = Asked(Client.submit_all)
    submit_plan = Asked(Client.submit_plan)
    send_plan = Asked(Client.send_plan)
    send_source = Asked(Client.send_source)
    send_files = Asked(Client.send_files)
    send_input = Asked(Client.send_input)
    send_stdin = Asked(Client.send_stdin)
    orchestrate = Asked(Client.orchestrate)

    # --- waiting -----------------------------------------------------------------------------------------------------

    @overload
    def wait(self, tasks: str, timeout: float | None = ...) -> Coroutine[Any, Any, TaskInfo]: ...

    @overload
    def wait(
        self, tasks: Iterable[AsyncFuture[R]], timeout: float | None = ..., *, return_when: str = ...
    ) -> Coroutine[Any, Any, tuple[set[AsyncFuture[R]], set[AsyncFuture[R]]]]: ...

    def wait(self, tasks: Any, timeout: float | None = None, *, return_when: str = ALL_COMPLETED) -> Any:
        """See `Client.wait`."""
        return (
            self._wait_for_one(tasks, timeout)
            if isinstance(tasks, str)
            else self._wait_for_many(list(tasks), timeout, return_when)
        )

    async def _wait_for_one(self, task: str, timeout: float | None) -> TaskInfo:
        told = await self.wait_for_end(task, timeout)
        return TaskInfo(str(told["task_id"]), str(told["status"]), told)

    async def _wait_for_many(
        self, tasks: list[AsyncFuture[R]], timeout: float | None, return_when: str
    ) -> tuple[set[AsyncFuture[R]], set[AsyncFuture[R]]]:
        futures = [one.future for one in tasks]
        told: DoneAndNotDone[R] = await self.alone(lambda: self.client.wait(futures, timeout, return_when=return_when))
        return {one for one in tasks if one.future in told.done}, {one for one in tasks if one.future in told.not_done}

    async def wait_for_end(self, task: str, timeout: float | None = None) -> Mapping[str, Any]:
        """See `Client.wait_for_end`."""
        try:
            async with asyncio.timeout(timeout):
                return await self._ends.of(task)
        except TimeoutError:
            raise TimeoutError(f"task {task} has not ended after {timeout or 0:g} s") from None

    @overload
    def as_completed(
        self, tasks: Iterable[AsyncFuture[R]], timeout: float | None = ...
    ) -> AsyncIterator[AsyncFuture[R]]: ...

    @overload
    def as_completed(self, tasks: Iterable[str], timeout: float | None = ...) -> AsyncIterator[TaskInfo]: ...

    async def as_completed(self, tasks: Iterable[Any], timeout: float | None = None) -> AsyncIterator[Any]:
        """See `Client.as_completed`."""
        wanted = list(tasks)
        ours = {one.future: one for one in wanted if isinstance(one, AsyncFuture)}
        plain: list[Any] = [one.future if isinstance(one, AsyncFuture) else one for one in wanted]
        async for ended in self.follow(lambda: self.client.as_completed(plain, timeout)):
            yield ours[ended] if isinstance(ended, Future) else ended

    @overload
    def results(
        self, futures: Iterable[AsyncFuture[R]], /, *, timeout: float | None = ...
    ) -> Coroutine[Any, Any, list[R]]: ...

    @overload
    def results(self, /, **filters: Any) -> AsyncIterator[dict[str, Any]]: ...

    def results(self, futures: Any = None, /, *, timeout: float | None = None, **filters: Any) -> Any:
        """See `Client.results`: of futures a coroutine, of filters an iterator."""
        if futures is None:
            return self.follow(lambda: self.client.results(**filters))
        plain: list[Future[Any]] = [one.future for one in futures]
        return self.alone(lambda: self.client.results(plain, timeout=timeout))

    # --- looking and changing ----------------------------------------------------------------------------------------

    task = Asked(Client.task)
    show = Asked(Client.show)
    tasks = Followed(Client.tasks)
    updates = Followed(Client.updates)
    plan = Asked(Client.plan)
    plan_ends = Followed(Client.plan_ends)
    orchestrated_task = Asked(Client.orchestrated_task)
    orchestrated_tasks = Followed(Client.orchestrated_tasks)
    cancel_orchestrated_task = Asked(Client.cancel_orchestrated_task)
    query = Asked(Client.query)
    logs = Followed(Client.logs)
    artifacts = Asked(Client.artifacts)
    read_artifact = Asked(Client.read_artifact)
    fetch_artifact = Asked(Client.fetch_artifact)
    cancel = Asked(Client.cancel)
    cancel_plan = Asked(Client.cancel_plan)
    retry = Asked(Client.retry)
    retry_plan = Asked(Client.retry_plan)
    workers = Asked(Client.workers)
    change_worker = Asked(Client.change_worker)
    cluster_status = Asked(Client.cluster_status)
    health = Asked(Client.health)
    scaling = Asked(Client.scaling)
    reservations = Asked(Client.reservations)
    reserve = Asked(Client.reserve)
    cancel_reservation = Asked(Client.cancel_reservation)
    change_node = Asked(Client.change_node)
    projects = Asked(Client.projects)
    set_project = Asked(Client.set_project)
    metrics = Asked(Client.metrics)
    alerts = Asked(Client.alerts)
    acknowledge_alert = Asked(Client.acknowledge_alert)
    silence_alerts = Asked(Client.silence_alerts)
    unsilence_alerts = Asked(Client.unsilence_alerts)
    test_alert_handler = Asked(Client.test_alert_handler)
    quarantine = Asked(Client.quarantine)
    put_into_quarantine = Asked(Client.put_into_quarantine)
    take_out_of_quarantine = Asked(Client.take_out_of_quarantine)
    secrets = Asked(Client.secrets)
    set_secret = Asked(Client.set_secret)
    remove_secret = Asked(Client.remove_secret)
    rotate_secrets = Asked(Client.rotate_secrets)
    schedules = Asked(Client.schedules)
    schedule = Asked(Client.schedule)
    change_schedule = Asked(Client.change_schedule)
    run_schedule = Asked(Client.run_schedule)
    licences = Asked(Client.licences)
    set_licence = Asked(Client.set_licence)
    create_token = Asked(Client.create_token)
    tokens = Asked(Client.tokens)
    revoke_token = Asked(Client.revoke_token)
    rotate_keys = Asked(Client.rotate_keys)
    status = Asked(Client.status)

    async def orchestrated_result(self, task: str, timeout: float | None = None) -> Any:
        """See `Client.orchestrated_result`."""
        return await self.alone(lambda: self.client.orchestrated_result(task, timeout))

    async def next_attempt(self, task: str, revision: int) -> TaskInfo:
        """See `Client.next_attempt`."""
        return await self.alone(lambda: self.client.next_attempt(task, revision))


class _Ends:
    """Waits for the ends of many tasks by a few questions, each for all tasks that no other one asks for. For one event loop.

    Args:
        look: asks `GET /api/task_ends` which of some tasks have ended, for so many seconds.
    """

    def __init__(self, look: Callable[[Sequence[str], float], Awaitable[Mapping[str, Any]]]) -> None:
        self._look = look
        self._wanted: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._closed = False
        self._num_waiting: Counter[str] = Counter()
        self._unasked: dict[str, None] = {}
        """Those of them that no question on its way asks for."""
        self._looks: set[asyncio.Task[None]] = set()

    async def of(self, task: str) -> Mapping[str, Any]:
        """Return a task once it has ended. Raises what the question raises."""
        if self._closed:
            raise FarmUnreachable(CLOSED)
        end = self._wanted.get(task)
        if end is None:
            end = self._wanted[task] = asyncio.get_running_loop().create_future()
            self._unasked[task] = None
            # Whoever else begins to wait in this turn of the loop is asked for by the same question.
            asyncio.get_running_loop().call_soon(self._ask)
        self._num_waiting[task] += 1
        try:
            return await asyncio.shield(end)
        finally:
            self._num_waiting[task] -= 1
            if not self._num_waiting[task]:
                del self._num_waiting[task]
                if self._wanted.get(task) is end:
                    del self._wanted[task]
                    self._unasked.pop(task, None)

    def close(self) -> None:
        """Ask nothing more: who waits is told `FarmUnreachable`."""
        self._closed = True
        self._unasked.clear()
        for end in self._wanted.values():
            end.set_exception(FarmUnreachable(CLOSED))
        self._wanted.clear()

    def _ask(self) -> None:
        while self._unasked and len(self._looks) < LOOKS:
            asked = list(self._unasked)[:ASKED_AT_ONCE]
            for task in asked:
                del self._unasked[task]
            look = asyncio.create_task(self._asked(asked, CROWDED if self._unasked else LOOK))
            self._looks.add(look)
            look.add_done_callback(self._looked)

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        self._ask()

    async def _asked(self, tasks: list[str], timeout: float) -> None:
        try:
            told = await self._look(tasks, timeout)
            for task in told["unknown"]:
                if (end := self._wanted.pop(task, None)) is not None:
                    end.set_exception(unknown_task(task))
            for ended in told["ended"]:
                if (end := self._wanted.pop(ended["task_id"], None)) is not None:
                    end.set_result(ended)
        except Exception as error:
            for task in tasks:
                if (end := self._wanted.pop(task, None)) is not None:
                    end.set_exception(error)
            return
        self._unasked.update(dict.fromkeys(task for task in tasks if task in self._wanted))


async def _run(threads: Executor, work: Callable[[], T]) -> T:
    try:
        answer = asyncio.get_running_loop().run_in_executor(threads, work)
    except RuntimeError:
        raise FarmUnreachable(CLOSED) from None
    return await answer


def _end_all(threads: list[ThreadPoolExecutor]) -> None:
    for one in threads:
        one.shutdown()
