"""Coordinators and workers in this process: a real HTTP server on a real port, and workers whose attempts are played."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dtf_lightning import __version__
from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.messages import (
    Acknowledge,
    CancelAttempt,
    Draining,
    Gone,
    Heartbeat,
    Hello,
    MeetingPlace,
    PickMeeting,
    Result,
    Run,
    Started,
    YieldAttempt,
)
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.health import HealthStatus, WorkerHealth
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.server.main import CoordinatorOptions, serve
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.tokens import make_token
from dtf_lightning.farm.worker.service.farm_worker import THREADS, FarmWorker, WorkerOptions
from dtf_lightning.farm.worker.service.link import Link

DEADLINE = 60.0


def start_threads(pool: ThreadPoolExecutor, number: int) -> None:
    """Start all threads of a pool of this many."""
    together = threading.Barrier(number)
    for waiting in [pool.submit(together.wait, DEADLINE) for _ in range(number)]:
        waiting.result(DEADLINE)


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True, name="test-loop")
        self._thread.start()

    def start_threads(self, number: int = 8) -> None:
        """Start all threads of the pool behind `asyncio.to_thread` now, so that no test is told of one that comes later."""
        pool = ThreadPoolExecutor(number, thread_name_prefix="asyncio")
        self.loop.call_soon_threadsafe(self.loop.set_default_executor, pool)
        start_threads(pool, number)

    def start(self, job) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(job, self.loop)

    def close(self) -> None:
        async def end() -> None:
            jobs = [job for job in asyncio.all_tasks() if job is not asyncio.current_task()]
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await self.loop.shutdown_default_executor()

        self.start(end()).result(DEADLINE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(DEADLINE)
        self.loop.close()


def wait_until_running(client: Client, task: str) -> None:
    """Until the coordinator has heard that a task's attempt has started."""
    poll_until(lambda: client.task(task).status == "running", DEADLINE, f"{task} to run")


class CoordinatorInThread:
    """One coordinator, which waits for its workers. `stop` is what SIGTERM does."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        farm: str = "f",
        name: str = "c0",
        settings: dict[str, Any] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.name = name
        self.token_file = folder / "token"
        options = CoordinatorOptions(
            farm=farm,
            name=name,
            host=host,
            port=0,
            folder=folder / "files",
            token=make_token(self.token_file),
            audit=folder / f"audit-{name}.jsonl",
            settings=CoordinatorSettings.load(given={"health_monitor.worker_grace": DEADLINE} | (settings or {})),
        )
        self.audit = options.audit
        self.loop = Loop()
        ready: Future[str] = Future()
        self._stopping: list[Callable[[], None]] = []
        self._running = self.loop.start(serve(store, options, ready.set_result, self._stopping.append))
        self._running.add_done_callback(
            lambda done: ready.done() or ready.set_exception(done.exception() or AssertionError())
        )
        try:
            self.url = ready.result(DEADLINE)
        except BaseException:
            self.loop.close()
            raise

    def stop(self) -> None:
        for stop in self._stopping:
            self.loop.loop.call_soon_threadsafe(stop)
        self._running.result(DEADLINE)
        self.loop.close()

    def client(self, ca: Path | None = None) -> Client:
        return Client(self.url, self.token_file, ca=ca)


class PlayedWorker:
    """A worker whose attempts do nothing. What it is told to run waits in `orders`; the test says how each ends."""

    def __init__(
        self,
        urls: tuple[str, ...],
        token: str,
        name: str = "w",
        session: str = "first",
        trust: Trust | None = None,
        **devices: float,
    ) -> None:
        self._loop = Loop()
        self.name = name
        self.devices = devices or {"cpu": 2.0}
        self.orders: queue.Queue[Run] = queue.Queue()
        self.called_off: queue.Queue[Run] = queue.Queue()
        self.cancelled: queue.Queue[CancelAttempt] = queue.Queue()
        self.yields: queue.Queue[YieldAttempt] = queue.Queue()
        self.acknowledgements: queue.Queue[Acknowledge] = queue.Queue()
        self.draining = threading.Event()
        self.session = session
        self._task: asyncio.Task[None] | None = None
        self.lingers = False
        """Whether what it is told to end goes on until `gone`."""
        self._running: dict[str, int] = {}
        self._kept: dict[tuple[str, int], Result] = {}
        self._token = token
        self._trust = trust
        self.connection = Connection(urls, token, trust=trust)
        self.link = Link(urls, token, self, trust=trust)
        self._job = self._loop.start(self._run())

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        await self.link.run()

    # --- what a link asks --------------------------------------------------------------------------------------------

    def hello(self) -> Hello:
        return Hello(
            worker=self.name,
            session=self.session,
            identity=f"folder of {self.session}",
            version=__version__,
            devices=self.devices,
            host=self.session,
            running=dict(self._running),
            kept=tuple(self._kept.values()),
        )

    def catch_up(self) -> list[Started | Result]:
        return list(self._kept.values())

    def run_attempt(self, message: Run) -> None:
        if message.called_off:
            self._running.pop(message.task, None)
            self.called_off.put(message)
        elif self._running.get(message.task) != message.revision and (message.task, message.revision) not in self._kept:
            self._running[message.task] = message.revision
            self.orders.put(message)

    def pick_meeting(self, message: PickMeeting) -> None:
        self.meet(message)

    def cancel(self, message: CancelAttempt) -> None:
        if self._running.get(message.task) == message.revision:
            del self._running[message.task]
        if not self.lingers:
            self.link.say(Gone(task=message.task, revision=message.revision))
        self.cancelled.put(message)

    def yield_device(self, message: YieldAttempt) -> None:
        self.yields.put(message)

    def acknowledged(self, message: Acknowledge) -> None:
        self._kept.pop((message.task, message.revision), None)
        self.acknowledgements.put(message)

    def drain(self) -> None:
        self.draining.set()
        self.link.say(Draining())

    # --- what a test says --------------------------------------------------------------------------------------------

    def next(self) -> Run:
        return self.orders.get(timeout=DEADLINE)

    def start(self, order: Run) -> None:
        self._say(Started(task=order.task, revision=order.revision, at=time.time()))

    def meet(self, order: Run | PickMeeting) -> None:
        """Say where the members of an attempt meet."""
        self._say(MeetingPlace(task=order.task, revision=order.revision, host="here", port=4242))

    def write(self, order: Run, offset: int, data: bytes) -> int:
        path = f"/api/tasks/{order.task}/logs"
        return int(self.connection.send("POST", path, data, revision=order.revision, offset=offset)["size"])

    def end(self, order: Run, kind: OutcomeKind = OutcomeKind.COMPLETED, **fields: Any) -> None:
        fields.setdefault("exit_code", 0 if kind is OutcomeKind.COMPLETED else 1)
        outcome = AttemptOutcome(kind=kind, **{"started": 1.0, "ended": 2.0} | fields)
        result = Result(task=order.task, number=order.number, revision=order.revision, outcome=outcome)

        def keep() -> None:
            self._running.pop(order.task, None)
            self._kept[order.task, order.revision] = result
            self.link.say(result)

        self._loop.loop.call_soon_threadsafe(keep)

    def report(self, **health: Any) -> None:
        """Say how its machine is."""
        self._say(Heartbeat(health=WorkerHealth(at=5.0, status=HealthStatus.HEALTHY, **health)))

    def gone(self, message: CancelAttempt) -> None:
        """Nothing is left of what it was told to end."""
        self._say(Gone(task=message.task, revision=message.revision))

    def wait_until_welcome(self) -> None:
        poll_until(self.link.connected.is_set, DEADLINE, f"{self.name} to be welcomed")

    def reconnect(self) -> None:
        """Leave the connection, and dial anew."""
        self.hold_off()
        self.come_back()

    def hold_off(self) -> None:
        """Leave the connection."""
        self._loop.start(self._end()).result(DEADLINE)

    def come_back(self) -> None:
        """Dial anew."""
        self.link = Link(tuple(self.link.addresses), self._token, self, trust=self._trust)
        self._job = self._loop.start(self._run())

    def error(self) -> BaseException | None:
        """What ended the link by itself."""
        return self._job.exception(DEADLINE)

    def close(self) -> None:
        self._loop.start(self._end()).result(DEADLINE)
        self._loop.close()
        self.connection.close()

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _say(self, message) -> None:
        self._loop.loop.call_soon_threadsafe(self.link.say, message)


class WorkerInThread:
    """A farm worker with its keeper, whose loop is a thread of this process."""

    def __init__(self, url: str, token: str, folder: Path, name: str, core: str = "0", **options: Any) -> None:
        self._loop = Loop()
        given = WorkerOptions(
            name=name,
            folder=folder,
            addresses=tuple(url.split(",")),
            token=token,
            devices={"cpu": 1.0},
            device_names={"cpu": (core,)},
            **options,
        )

        async def run() -> None:
            self._worker = FarmWorker(given)
            await asyncio.to_thread(start_threads, self._worker._pool, THREADS)
            await self._worker.run()

        self._running = self._loop.start(run())

    def close(self) -> None:
        self._loop.loop.call_soon_threadsafe(self._worker.stop)
        self._running.result(DEADLINE)
        self._loop.close()
