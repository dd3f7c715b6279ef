"""`FarmWorker`: what a worker does with what its coordinators say, and what it tells them.

Data flow: `Run` -> its source is fetched and unpacked -> the executor starts it -> its output goes to a coordinator ->
it ends -> the spool keeps how -> its artifacts go to the farm's store -> `Result` -> `Acknowledge` -> the spool forgets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from dtf_lightning import __version__
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.messages import (
    Acknowledge,
    CancelAttempt,
    Draining,
    Gone,
    Hello,
    MeetingPlace,
    PickMeeting,
    Result,
    Run,
    Started,
    YieldAttempt,
)
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.scheduling.yielding import DEADLINE
from dtf_lightning.farm.security.trust import Trust
from dtf_lightning.farm.worker.executor import Executor
from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.keeper.hardware_metrics import INTERVAL
from dtf_lightning.farm.worker.orders import AttemptOutput, AttemptStarted, Told
from dtf_lightning.farm.worker.service.at_hand import AttemptsAtHand, Key
from dtf_lightning.farm.worker.service.health import HealthReader
from dtf_lightning.farm.worker.service.link import Link
from dtf_lightning.farm.worker.service.meetings import Meetings
from dtf_lightning.farm.worker.service.outgoing import Outgoing
from dtf_lightning.farm.worker.service.preparation import Preparation, reach_of
from dtf_lightning.farm.worker.service.secret_files import SecretFiles
from dtf_lightning.farm.worker.spool import Spool
from dtf_lightning.whole_files import write_whole

log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds that attempts have to end when the worker has to."""
LAST_WORDS = 3.0
THREADS = 4
"""For starting attempts and for removing what they leave."""


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What a worker is started with."""

    name: str
    folder: Path
    addresses: tuple[str, ...]
    """Of coordinators."""
    token: str | Callable[[], str]
    """The farm's, or one for this worker; or what returns one that is good."""
    devices: Mapping[str, float]
    """Resource -> amount that it offers."""
    device_names: Mapping[str, tuple[str, ...]]
    """Resource -> names of the devices that are shared out."""
    labels: tuple[str, ...] = ()
    host: str = field(default_factory=socket.gethostname)
    """Name of the machine, for people."""
    timeout: float | None = None
    """Seconds, of an attempt whose task has none of its own."""
    cache: Path | None = None
    """Where caches lie; `None`: in the folder."""
    metrics_interval: float = INTERVAL
    """Seconds between two samples of what an attempt takes, at first."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Figure of the machine's health -> per cent above which it is in want."""
    health_interval: float = 30.0
    """Seconds between two reports of it."""
    secrets: Path | None = None
    """Folder of the secrets that it gives to tasks which name them."""
    trust: Trust = field(default_factory=Trust)
    """By which it and coordinators with TLS know each other."""
    allow_pickle: bool = True
    """Whether it runs functions that travel by cloudpickle, which the farm must have allowed, too."""
    until_idle: float | None = None
    """Seconds without a task after which it leaves; `None`: it stays."""
    cache_bytes: int = 20 << 30
    """Of its cache folder: sources, inputs, and what tasks' libraries keep there (models, data, packages)."""


class FarmWorker:
    """Runs on an event loop: `await run()` until `stop()` or a drain ends it. Raises what `Link.run` raises."""

    def __init__(self, options: WorkerOptions) -> None:
        self._loop = asyncio.get_running_loop()
        folders = WorkerFolders(options.folder, options.cache)
        self._hello = Hello(
            worker=options.name,
            session=secrets.token_hex(8),
            identity=identity_of(folders),
            version=__version__,
            devices=options.devices,
            labels=options.labels,
            host=options.host,
        )
        self._connection = Connection(options.addresses, options.token, trust=options.trust)
        self._at_hand = AttemptsAtHand()
        self._yielding: dict[Key, str] = {}
        """Attempts of trainings' parts that were asked for their devices, and why; set before the executor is told."""
        # On the event loop:
        self._draining = False
        self._stopping = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="dtf-farm-worker")
        self._preparation = Preparation(
            self._connection,
            folders.cache,
            options.cache_bytes,
            SecretFiles(options.secrets),
            timeout=options.timeout,
            allow_pickle=options.allow_pickle,
            reach=reach_of(options.addresses, options.trust),
        )
        self._spool = Spool(options.folder)
        self._meetings = Meetings()
        self._outgoing = Outgoing(options.folder, self._connection, self._at_hand, self._stored)
        self._link = Link(
            options.addresses,
            options.token,
            self,
            health=HealthReader(
                folders.path,
                options.thresholds,
                running=lambda: [
                    (task, folders.attempt(task, revision).results)
                    for task, revision in self._executor.running().items()
                ],
            ).read,
            health_interval=options.health_interval,
            trust=options.trust,
        )
        # Tells at once what an earlier process has left.
        self._executor = Executor(
            options.folder,
            cache=options.cache,
            devices=options.device_names,
            tell=self._told,
            sample=options.metrics_interval,
            recall=self._preparation.recall,
        )

    @property
    def connected(self) -> asyncio.Event:
        """Set while a coordinator has welcomed the worker."""
        return self._link.connected

    @property
    def has_work(self) -> bool:
        """Whether anything runs here, is prepared, or is still to be told."""
        return bool(self._at_hand.preparing() or self._executor.running() or self._spool.kept())

    @property
    def num_begun(self) -> int:
        """Attempts that were begun here."""
        return self._at_hand.num_begun

    async def stopped(self) -> None:
        """Return when it is told to end, or has nothing more to do after a drain."""
        await self._stopping.wait()

    async def run(self) -> None:
        """Work until `stop`, or until a drain has ended."""
        for kept in self._spool.kept():
            self._wait_for_output(
                Result(task=kept.task, number=kept.number, revision=kept.revision, outcome=kept.outcome)
            )
        self._outgoing.start()
        self._preparation.go_on(self._executor)
        jobs = [asyncio.create_task(self._link.run()), asyncio.create_task(self.stopped())]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done():
                    job.result()
            await self._sign_off()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await asyncio.to_thread(self._close)

    def stop(self) -> None:
        """End `run`: attempts end too, and are told as lost by whoever comes next."""
        self._stopping.set()

    # --- what a coordinator says (see `Workplace`) -------------------------------------------------------------------

    def hello(self) -> Hello:
        """See `Workplace`."""
        return replace(
            self._hello,
            labels=(*self._hello.labels, *self._preparation.labels()),
            running={**self._at_hand.preparing(), **self._executor.running(), **self._at_hand.waiting()},
            kept=self._at_hand.results(),
            draining=self._draining,
        )

    def catch_up(self) -> list[Started | Result]:
        """See `Workplace`."""
        return [*self._at_hand.all_started(), *self._at_hand.results()]

    def run_attempt(self, message: Run) -> None:
        """See `Workplace`."""
        key = message.task, message.revision
        if (result := self._at_hand.result(key)) is not None:
            self._link.say(result)
        elif message.called_off and self._is_at_hand(key):
            self._end(key, message.called_off)
        elif not self._is_known(key) and self._at_hand.begin(key):
            self._pool.submit(self._start, message)

    def cancel(self, message: CancelAttempt) -> None:
        """See `Workplace`."""
        key = message.task, message.revision
        self._end(key, message.reason)
        self._tell_if_gone(key)

    def yield_device(self, message: YieldAttempt) -> None:
        """See `Workplace`. An attempt that is still being prepared is told when its executor has it."""
        key = message.task, message.revision
        self._yielding[key] = message.reason
        self._executor.yield_device(*key, message.reason, DEADLINE)

    def pick_meeting(self, message: PickMeeting) -> None:
        """See `Workplace`."""
        try:
            port = self._meetings.port((message.task, message.revision))
        except OSError as error:  # it is asked again when it connects again; until then the gang waits
            log.error("no port for the members of task %s to meet: %s", message.task, error)
            return
        self._link.say(MeetingPlace(task=message.task, revision=message.revision, host=self._link.host, port=port))

    def acknowledged(self, message: Acknowledge) -> None:
        """See `Workplace`."""
        if not message.recorded:
            log.info("the result of task %s came too late: another attempt counts", message.task)
        self._at_hand.forget((message.task, message.revision))
        self._yielding.pop((message.task, message.revision), None)
        self._meetings.forget((message.task, message.revision))
        self._pool.submit(self._forget, message.task, message.revision)

    def drain(self) -> None:
        """End when what runs has ended."""
        if not self._draining:
            self._draining = True
            log.info("draining")
            self._link.say(Draining())
        self._leave_if_drained()

    # --- what the executor tells, in its threads ---------------------------------------------------------------------

    def _told(self, told: Told) -> None:
        key = told.task, told.revision
        if isinstance(told, AttemptOutput):
            self._outgoing.grown(*key, told.offset + len(told.data))
        elif isinstance(told, AttemptStarted):
            self._at_hand.started(key, told.at)
            self._call(Started(task=told.task, revision=told.revision, at=told.at))
        else:
            number, outcome = told.number, told.outcome
            self._keep(Result(task=told.task, number=number, revision=told.revision, outcome=outcome))

    def _keep(self, result: Result) -> None:
        self._spool.keep(result.number, result.task, result.revision, result.outcome)
        self._look_if_gone((result.task, result.revision))
        self._wait_for_output(result)

    def _wait_for_output(self, result: Result) -> None:
        self._at_hand.ended(result)
        self._outgoing.ended(result)

    def _stored(self, result: Result) -> None:
        self._at_hand.complete(result)
        self._call(result)

    def _forget(self, task: str, revision: int) -> None:
        """In a thread of the pool: a workspace may hold many files."""
        try:
            self._spool.forget(task, revision)
        except OSError:
            log.exception("what task %s has left cannot be removed", task)
        self._preparation.tidy(lambda: bool(self._at_hand.preparing() or self._executor.running()))
        if self._draining or self._stopping.is_set():  # whoever begins to leave after this finds it forgotten
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._forgotten)

    def _forgotten(self) -> None:
        self._acknowledged.set()
        self._leave_if_drained()

    def _tell_if_gone(self, key: Key) -> None:
        """On the event loop: say that nothing is left of an attempt that was to end, once that is so."""
        task, revision = key
        over = not self._executor.has(task, revision) or self._spool.holds(task, revision)
        if over and self._at_hand.take_unwanted(key):
            self._link.say(Gone(task=task, revision=revision))

    def _look_if_gone(self, key: Key) -> None:
        """After it was prepared, or its outcome kept. Whoever calls it off later looks, too."""
        if not self._at_hand.is_unwanted(key):
            return
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._tell_if_gone, key)

    def _call(self, message: Started | Result) -> None:
        try:
            self._loop.call_soon_threadsafe(self._link.say, message)
        except RuntimeError:
            log.debug("the event loop has ended")

    # --- starting an attempt, in a thread of the pool -----------------------------------------------------------------

    def _start(self, message: Run) -> None:
        key = message.task, message.revision
        try:
            order = self._preparation.order(message)
            if message.called_off or self._at_hand.is_cancelled(key):
                self._give_up(message, OutcomeKind.CANCELLED, message.called_off or "cancelled before it started")
            else:
                self._executor.start(order, self._preparation.files(message))
                if (reason := self._yielding.get(key)) is not None:
                    self._executor.yield_device(*key, reason, DEADLINE)
                self._preparation.follow_input(message, self._executor)
        except (DtfError, OSError) as error:
            self._give_up(message, OutcomeKind.LOST, f"the worker could not start it: {error}")
        except Exception:
            log.exception("task %s could not be started", message.task)
            self._give_up(message, OutcomeKind.LOST, "the worker could not start it, see its log")
        finally:
            self._at_hand.prepared(key)
            self._look_if_gone(key)

    def _give_up(self, message: Run, kind: OutcomeKind, reason: str) -> None:
        now = time.time()
        outcome = AttemptOutcome(kind=kind, reason=reason, started=now, ended=now)
        self._keep(Result(task=message.task, number=message.number, revision=message.revision, outcome=outcome))

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _end(self, key: Key, reason: str) -> None:
        self._at_hand.cancel(key)
        self._executor.cancel(*key, reason)

    def _is_at_hand(self, key: Key) -> bool:
        return key in self._at_hand.preparing().items() or self._is_known(key)

    def _is_known(self, key: Key) -> bool:
        task, revision = key
        return self._executor.running().get(task) == revision or self._spool.holds(task, revision)

    def _leave_if_drained(self) -> None:
        if self._draining and not self.has_work:
            self._stopping.set()

    async def _sign_off(self) -> None:
        """End what runs, and give the coordinator a moment to hear of it; what it does not hear stays on the disk."""
        await asyncio.to_thread(self._executor.close, GRACE)
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                while self._spool.kept():
                    self._acknowledged.clear()
                    await self._acknowledged.wait()

    def _close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._executor.close(GRACE)
        self._outgoing.close()
        self._meetings.close()
        self._connection.close()


def identity_of(folders: WorkerFolders) -> str:
    """Return what tells a worker's folder from all others; chosen when it is used first."""
    path = folders.path / "identity"
    if not path.exists():
        write_whole(path, secrets.token_hex(16).encode())
    return path.read_text()
