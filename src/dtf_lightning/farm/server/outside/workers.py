"""Workers that speak REST: they register, ask for their tasks, and say how each has ended.

Rules that this file guards:
- The record is the same as that of workers with a WebSocket, and so are the fences: an attempt's end counts if it is of the
  attempt that counts, by its revision, whichever coordinator is told.
- A worker that asks nothing for `SILENCE` seconds is signed off; what it runs goes elsewhere after the farm's grace.
- A registration holds at the coordinator that took it: another one, and a later one, say "register again".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, ProtocolError, SettingsError, StoreError, StoreUnavailable
from dtf_lightning.farm.messages import Result
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import Attempt, WorkerRecord, WorkerState
from dtf_lightning.farm.record.writes import Recording, Register
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.health import judge_health
from dtf_lightning.farm.server.outside.models import AttemptEnd, HealthReport, Registration
from dtf_lightning.farm.server.pool import LiveTask, Pool
from dtf_lightning.farm.server.scheduling.endings import on_worker, release
from dtf_lightning.farm.server.upkeep.health import HealthReports

log = logging.getLogger(__name__)

SILENCE = 15.0
"""Seconds after which a worker that asks nothing is taken for gone."""
THRESHOLDS = {"cpu_percent": 95.0, "memory_percent": 90.0, "disk_percent": 90.0}
"""Per cent, from which on a machine's figures are a warning; critical from half of what is left."""
SHOWN = 5.0
WRITE = 3.0


class RegisterAgain(DtfError):
    """This coordinator does not hold the worker's registration."""


class Stale(DtfError):
    """The attempt does not count any more."""


@dataclass
class _Registered:
    """A worker that is registered here."""

    nonce: str
    timer: asyncio.TimerHandle


class OutsideWorkers:
    """Those of one coordinator. Runs on its event loop.

    Args:
        coordinator: its name.
        record_result: records an attempt's end, if it is of the attempt that counts.
        reports: of the workers' health.
    """

    def __init__(
        self,
        coordinator: str,
        pool: Pool,
        record: FarmRecord,
        clock: Clock,
        record_result: Callable[[str, Result], Awaitable[Recording]],
        reports: HealthReports,
    ) -> None:
        self._coordinator = coordinator
        self._pool = pool
        self._record = record
        self._clock = clock
        self._record_result = record_result
        self._reports = reports
        self._here: dict[str, _Registered] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        pool.listeners.append(self._changed)

    # --- what a worker says ------------------------------------------------------------------------------------------

    async def register(self, asked: Registration) -> dict[str, Any]:
        """Take a worker in. Raises `SettingsError` for a name that is in use, and what etcd raises."""
        name, nonce = asked.worker_id, secrets.token_hex(8)
        for _ in range(10):
            known = self._pool.workers().get(name)
            if known is not None and self._is_another(known, asked):
                raise SettingsError(
                    f"another worker named {name!r} is connected, on {known.host or 'another machine'}: choose another name"
                )
            record = WorkerRecord(
                coordinator=self._coordinator,
                connection=nonce,
                session=nonce,
                identity=asked.identity,
                devices=asked.devices,
                labels=asked.labels,
                cordoned=known is not None and known.cordoned,
                cordoned_at=0.0 if known is None else known.cordoned_at,
                cordoned_for="" if known is None else known.cordoned_for,
                host=asked.hardware_id,
            )
            seen = self._pool.mirror.seen(Kind.WORKER, name)
            write = Register(worker=name, record=record, seen=seen)
            if await self._record.answer(write, timeout=WRITE):
                break
            await self._pool.wait_for_change(Kind.WORKER, name, seen, 1.0)
        else:
            raise StoreUnavailable(f"worker {name}: its record changes all the time, try again")
        if not await self._pool.wait_for(name, lambda: self._holds(name, nonce), SHOWN):
            raise StoreUnavailable(f"worker {name}: the record does not show its registration yet, try again")
        self._forget(name)
        self._here[name] = _Registered(nonce, self._timer(name, nonce))
        addresses = sorted(record.address for record in self._pool.coordinators().values() if record.enabled)
        return {
            "worker_id": name,
            "session": nonce,
            "coordinator": self._coordinator,
            "addresses": addresses,
            "silence_seconds": SILENCE,
        }

    async def tasks(self, worker: str, session: str, known: frozenset[int], wait: float) -> dict[str, Any]:
        """Return the attempts that a worker is to make, or makes; as soon as they are other than `known`, or after a time.

        `known`: revisions of attempts. Raises `RegisterAgain`.
        """
        self._heard(worker, session)

        def news() -> bool:
            here = self._registered(worker, session) is not None
            return not here or {live.revision for live in self._attempts(worker)} != known

        await self._pool.wait_for(_of(worker), news, wait)
        self._heard(worker, session)
        record = self._pool.workers()[worker]
        tasks = [_assigned(live) for live in self._attempts(worker)]
        return {"tasks": tasks, "draining": record.state is WorkerState.DRAINING}

    async def health(self, asked: HealthReport) -> dict[str, Any]:
        """A worker is there; returns what it is to end. Raises `RegisterAgain`."""
        worker = asked.worker_id
        self._heard(worker, asked.session)
        if asked.performance_metrics:
            self._reports.heard(worker, judge_health(asked.performance_metrics, THRESHOLDS, self._clock.wall()))
        ending = []
        for task, revision in asked.running.items():
            live = self._pool.live(task)
            if live is None or live.revision != revision or worker not in live.attempt.workers:
                ending.append({"task_id": task, "revision": revision, "reason": "the attempt does not count any more"})
            elif live.started is None:
                self._pool.attempt_started(task, revision, self._clock.wall())
        for task, revision in on_worker(self._pool.mirror, worker):
            if asked.running.get(task) != revision:
                await release(self._pool, self._record, worker, task, revision)
        record = self._pool.workers()[worker]
        if asked.draining and record.state is not WorkerState.DRAINING:
            record = replace(record, state=WorkerState.DRAINING)
            write = Register(worker=worker, record=record, seen=self._pool.mirror.seen(Kind.WORKER, worker))
            await self._record.answer(write, timeout=WRITE)
        return {"worker_id": worker, "cancel": ending, "draining": record.state is WorkerState.DRAINING}

    async def end(self, task: str, asked: AttemptEnd, kind: OutcomeKind, reason: str) -> dict[str, Any]:
        """Record how an attempt has ended. Raises `Stale` where it does not count any more, and what etcd raises.

        Asked again for what was recorded, it says so again.
        """
        outcome = asked.outcome(kind, reason, self._clock.wall())
        await self._end(asked.worker_id, task, asked.revision, outcome)
        await self._pool.wait_for(task, lambda: self._pool.mirror.seen(Kind.ATTEMPT, task) != asked.revision, SHOWN)
        return {"task_id": task, "revision": asked.revision, "recorded": True}

    async def _end(self, worker: str, task: str, revision: int, outcome: AttemptOutcome) -> None:
        result = Result(task=task, number=0, revision=revision, outcome=outcome)
        try:
            recording = await self._record_result(worker, result)
        except ProtocolError as error:
            raise SettingsError(str(error)) from error
        if recording is not Recording.RECORDED:
            await release(self._pool, self._record, worker, task, revision)
            raise Stale(f"the attempt {revision} at {task} does not count any more: leave it")

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _is_another(self, known: WorkerRecord, asked: Registration) -> bool:
        connected = known.coordinator in self._pool.coordinators()
        return connected and not (asked.identity and known.identity == asked.identity)

    def _holds(self, worker: str, session: str) -> bool:
        record = self._pool.workers().get(worker)
        return record is not None and record.connection == session and record.coordinator == self._coordinator

    def _registered(self, worker: str, session: str) -> _Registered | None:
        found = self._here.get(worker)
        valid = found is not None and found.nonce == session and self._holds(worker, session)
        return found if valid else None

    def holds(self, nonce: str) -> bool:
        """Whether a registration is one of this process."""
        return any(registered.nonce == nonce for registered in self._here.values())

    def _heard(self, worker: str, session: str) -> None:
        """A worker has said something. Raises `RegisterAgain`."""
        registered = self._registered(worker, session)
        if registered is None:
            raise RegisterAgain(
                f"the coordinator {self._coordinator} holds no such registration of {worker!r}: register again"
            )
        registered.timer.cancel()
        registered.timer = self._timer(worker, session)

    def _attempts(self, worker: str) -> list[LiveTask]:
        found = []
        for (task,), held in list(self._pool.mirror.all(Kind.ATTEMPT).items()):
            assert isinstance(held.value, Attempt)
            if worker in held.value.workers and (live := self._pool.live(task)) is not None:
                if len(live.attempt.workers) > 1:
                    self._spawn(self._refuse_gang(worker, live))
                else:
                    found.append(live)
        return found

    async def _refuse_gang(self, worker: str, live: LiveTask) -> None:
        now = self._clock.wall()
        reason = f"the worker {worker} speaks REST, and such a worker cannot be a member of a gang"
        outcome = AttemptOutcome(kind=OutcomeKind.LOST, reason=reason, started=now, ended=now)
        with contextlib.suppress(StoreError, Stale):
            await self._end(worker, live.task, live.revision, outcome)

    def _timer(self, worker: str, nonce: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SILENCE, self._silent, worker, nonce)

    def _silent(self, worker: str, nonce: str) -> None:
        log.info("worker %s has asked nothing for %.0f s", worker, SILENCE)
        self._forget(worker)
        self._spawn(self._sign_off(worker, nonce))

    async def _sign_off(self, worker: str, nonce: str) -> None:
        while self._holds(worker, nonce):
            record = replace(self._pool.workers()[worker], coordinator="")
            seen = self._pool.mirror.seen(Kind.WORKER, worker)
            with contextlib.suppress(StoreError):
                await self._record.answer(Register(worker=worker, record=record, seen=seen))
            await self._pool.wait_for_change(Kind.WORKER, worker, seen, 1.0)

    def _forget(self, worker: str) -> None:
        if (registered := self._here.pop(worker, None)) is not None:
            registered.timer.cancel()

    def close(self) -> None:
        """End the timers: whoever is registered here registers elsewhere."""
        for worker in list(self._here):
            self._forget(worker)
            self._pool.wake(_of(worker))
        for job in self._jobs:
            job.cancel()

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.WORKER and change.names[0] in self._here:
            self._pool.wake(_of(change.names[0]))
        elif change.kind is Kind.ATTEMPT:
            for held in (change.before, change.after):
                if held is not None and isinstance(held.value, Attempt):
                    for worker in held.value.workers:
                        if worker in self._here:
                            self._pool.wake(_of(worker))

    def _spawn(self, job: Any) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


def _of(worker: str) -> str:
    """The name under which a worker's requests wait; no record has such a name."""
    return f"outside/{worker}"


def _assigned(live: LiveTask) -> dict[str, Any]:
    told, needs = live.specification, live.specification.needs
    granted: Mapping[str, float] = needs[live.attempt.alternative].amounts if needs else {"cpu": 1.0}
    return {
        "task_id": live.task,
        "revision": live.revision,
        "attempt": live.attempt.number,
        "type": "command",
        "name": told.name,
        "project": told.project,
        "plan": told.plan,
        "command": list(told.command),
        "environment": dict(told.environment),
        "needs": dict(granted),
        "timeout": told.timeout,
        "source": told.source,
        "folder": told.folder,
        "artifacts": list(told.artifacts),
    }
