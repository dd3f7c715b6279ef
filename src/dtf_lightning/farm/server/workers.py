"""The workers' connections: one WebSocket each, which the worker opened.

Rules that this file guards:
- A worker is welcomed once the mirror shows its registration here: a coordinator that was frozen, and whose mirror is of
  yesterday, hands out nothing.
- What a worker runs is told to it by the record alone: a `run` for every attempt that names it, once for each connection.
- A result is acknowledged when etcd has told what became of it, and not before. Its worker only forgets something by that: so
  it travels with the next message to that worker, most often what it is to run instead, and alone after `ACKNOWLEDGED_WITHIN`.
- A worker that is declared lost while its connection is alive is disconnected, so that it says hello again.
- A connection on which nothing came for `SILENCE` seconds is closed; its worker's record then names no coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from dtf_lightning.errors import ProtocolError, StoreError
from dtf_lightning.farm.messages import (
    SILENCE,
    Acknowledge,
    CancelAttempt,
    Drain,
    Draining,
    FromCoordinator,
    FromWorker,
    Gone,
    Heartbeat,
    Hello,
    MeetingPlace,
    PickMeeting,
    Refuse,
    Result,
    Run,
    Started,
    Welcome,
    YieldAttempt,
    next_text,
    read_message,
    read_messages,
    write_message,
)
from dtf_lightning.farm.record.gang_writes import Meet, RecordMember
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import (
    Attempt,
    Ending,
    Meeting,
    MemberRecord,
    WorkerRecord,
    WorkerState,
    YieldRequest,
)
from dtf_lightning.farm.record.writes import Recording, Register, Write
from dtf_lightning.farm.server.envelopes import bounded, end_of_attempt
from dtf_lightning.farm.server.pool import LiveTask, Pool
from dtf_lightning.farm.server.scheduling.endings import on_worker, release
from dtf_lightning.farm.server.scheduling.gangs import meeting_of, members_that_ended, why_called_off
from dtf_lightning.farm.server.upkeep.health import HealthReports

log = logging.getLogger(__name__)

SLACK = 0.5
"""Seconds by which a silence may be noticed late."""
ACKNOWLEDGED_WITHIN = 0.02
"""Seconds for which an acknowledgement may wait for another message."""
NOT_COUNTED = "the attempt does not count any more"
WELCOME_TIMEOUT = 10.0
"""Seconds for a registration to be written and to come by in the watch."""


class Socket(Protocol):
    """A WebSocket's server side, as Starlette has it."""

    async def receive_text(self) -> str: ...
    async def send_text(self, data: str) -> None: ...
    async def close(self, code: int = 1000, reason: str | None = None) -> None: ...


@dataclass(eq=False)
class _Connection:
    """One worker's connection."""

    worker: str
    socket: Socket
    nonce: str
    outgoing: asyncio.Queue[FromCoordinator] = field(default_factory=asyncio.Queue)
    told: dict[str, int] = field(default_factory=dict)
    """Task -> the attempt's revision, for what it has been told to run, or said that it runs."""
    called_off: dict[str, int] = field(default_factory=dict)
    """Task -> the revision of its gang's attempt, of which it has been told that it must end."""
    welcomed: bool = False
    acknowledgements: list[FromCoordinator] = field(default_factory=list)
    """Those that wait for a message to travel with."""

    def take_acknowledgements(self) -> list[FromCoordinator]:
        """Return them; they wait no more."""
        taken, self.acknowledgements = self.acknowledgements, []
        return taken


class WorkerConnections:
    """All connections of one coordinator. Runs on its event loop.

    Args:
        coordinator: the coordinator's name.
        pool: what it knows of the farm.
        record: where results and registrations are written.
    """

    def __init__(self, coordinator: str, pool: Pool, record: FarmRecord) -> None:
        self._coordinator = coordinator
        self._pool = pool
        self._record = record
        self._connections: dict[str, _Connection] = {}
        self.health = HealthReports(record, time.monotonic)
        self._jobs: set[asyncio.Task[None]] = set()
        self._unacknowledged: list[_Connection] = []
        """Connections for whose acknowledgements a timer runs."""
        pool.listeners.append(self._changed)

    @property
    def num_connected(self) -> int:
        """Workers that are connected here."""
        return len(self._connections)

    def holds(self, nonce: str) -> bool:
        """Whether a connection is one of this process."""
        return any(connection.nonce == nonce for connection in self._connections.values())

    async def serve(self, socket: Socket, named: str | None = None) -> None:
        """Talk with one worker until its connection ends, or etcd does not register it. Raises what the socket raises.

        `named`: the one worker for which its token speaks; `None`: any.
        """
        connection: _Connection | None = None
        sender: asyncio.Task[None] | None = None
        try:
            if self._pool.mirror.get(Kind.DISABLED, self._coordinator) is not None:
                await _close(socket, "this coordinator is disabled by an operator: dial another one")
                return
            hello = await self._receive(socket)
            if not isinstance(hello, Hello):
                await self._refuse(socket, f"the first message must be hello, got {type(hello).__name__}")
                return
            if named not in (None, hello.worker):
                await self._refuse(
                    socket,
                    f"its token is of the worker {named!r}, and speaks for no other, as here for {hello.worker!r}",
                )
                return
            if (other := self._pool.workers().get(hello.worker)) is not None and self._is_another(other, hello):
                await self._refuse(
                    socket,
                    f"another worker named {hello.worker!r} is connected, on {other.host or 'another machine'}: choose another "
                    "name with --name",
                )
                return
            connection = _Connection(hello.worker, socket, secrets.token_hex(8))
            if (old := self._connections.pop(hello.worker, None)) is not None:
                self._spawn(_close(old.socket, "the worker has connected again"))
            self._connections[hello.worker] = connection
            sender = asyncio.create_task(_send_all(connection))
            await self._welcome(connection, hello)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(SILENCE + SLACK) as silence:
                while True:
                    for message in read_messages(await socket.receive_text()):
                        self._heard(connection, message)
                    now = loop.time()
                    if (silence.when() or 0.0) < now + SILENCE:  # not a timer for each word
                        silence.reschedule(now + SILENCE + SLACK)
        except ProtocolError as error:
            log.warning("worker %s: %s", connection.worker if connection else "?", error)
            await self._refuse(socket, str(error))
        except TimeoutError:
            log.info("worker %s was silent for %.0f s", connection.worker if connection else "?", SILENCE)
            await _close(socket, "silent")
        except StoreError as error:  # also of a record that is closed: the coordinator ends
            log.info("worker %s cannot be registered: %s", connection.worker if connection else "?", error)
            await _close(socket, "etcd is away")
        finally:
            if sender is not None:
                sender.cancel()
            if connection is not None and self._connections.get(connection.worker) is connection:
                del self._connections[connection.worker]
                self._spawn(self._sign_off(connection))

    async def close(self) -> None:
        """Close all connections; their workers go to another coordinator."""
        for connection in list(self._connections.values()):
            await _close(connection.socket, "the coordinator ends")
        jobs = list(self._jobs)
        if jobs:
            await asyncio.wait(jobs, timeout=WELCOME_TIMEOUT)

    # --- a connection's beginning and end ----------------------------------------------------------------------------

    def _is_another(self, record: WorkerRecord, hello: Hello) -> bool:
        """Whether the name is in use by another process whose connection is alive."""
        connected = record.coordinator in self._pool.coordinators()
        here = record.coordinator != self._coordinator or hello.worker in self._connections
        return connected and here and record.session != hello.session and record.identity != hello.identity

    async def _welcome(self, connection: _Connection, hello: Hello) -> None:
        worker = hello.worker
        registered = False
        async with asyncio.timeout(WELCOME_TIMEOUT):
            while not registered:
                held = self._pool.mirror.get(Kind.WORKER, worker)
                known = held.value if held is not None and isinstance(held.value, WorkerRecord) else None
                asked_to_drain = (
                    known is not None and known.session == hello.session and known.state is WorkerState.DRAINING
                )
                record = WorkerRecord(
                    coordinator=self._coordinator,
                    connection=connection.nonce,
                    session=hello.session,
                    identity=hello.identity,
                    state=WorkerState.DRAINING if hello.draining or asked_to_drain else WorkerState.ONLINE,
                    devices=hello.devices,
                    labels=hello.labels,
                    cordoned=known is not None and known.cordoned,
                    cordoned_at=0.0 if known is None else known.cordoned_at,
                    cordoned_for="" if known is None else known.cordoned_for,
                    host=hello.host,
                )
                seen = self._pool.mirror.seen(Kind.WORKER, worker)
                write = Register(worker=worker, record=record, seen=seen)
                registered = await self._record.answer(write, timeout=WELCOME_TIMEOUT)
                if not registered:
                    await self._pool.wait_for_change(Kind.WORKER, worker, seen, 1.0)
        shown = await self._pool.wait_for(worker, lambda: self._shows(connection), WELCOME_TIMEOUT)
        if not shown:
            raise TimeoutError
        addresses = tuple(sorted(record.address for record in self._pool.coordinators().values() if record.enabled))
        connection.welcomed = True
        connection.outgoing.put_nowait(Welcome(coordinator=self._coordinator, addresses=addresses))
        if not hello.draining and self._pool.workers()[worker].state is WorkerState.DRAINING:
            connection.outgoing.put_nowait(Drain())
        for result in hello.kept:
            connection.told[result.task] = result.revision
            self._take_result(connection, result)
        for task, revision in hello.running.items():
            connection.told[task] = revision
            if self._pool.mirror.seen(Kind.ATTEMPT, task) != revision:
                self._cancel(connection, task, revision, NOT_COUNTED)
        for task, revision in on_worker(self._pool.mirror, worker):
            self._cancel(connection, task, revision, NOT_COUNTED)
        for (task,), held in list(self._pool.mirror.all(Kind.ATTEMPT).items()):
            assert isinstance(held.value, Attempt)
            if worker in held.value.workers:
                self._run(connection, task, held.value, held.mod_revision)

    def _shows(self, connection: _Connection) -> bool:
        record = self._pool.workers().get(connection.worker)
        return record is not None and record.connection == connection.nonce

    async def _sign_off(self, connection: _Connection) -> None:
        held = self._pool.mirror.get(Kind.WORKER, connection.worker)
        if held is None or not isinstance(held.value, WorkerRecord) or held.value.connection != connection.nonce:
            return
        record = replace(held.value, coordinator="")
        await self._try(Register(worker=connection.worker, record=record, seen=held.mod_revision))

    # --- what a worker says ------------------------------------------------------------------------------------------

    async def _receive(self, socket: Socket) -> FromWorker | FromCoordinator:
        async with asyncio.timeout(SILENCE):
            return read_message(await socket.receive_text())

    def _heard(self, connection: _Connection, message: FromWorker | FromCoordinator) -> None:
        if isinstance(message, Heartbeat):
            connection.outgoing.put_nowait(Heartbeat())
            if message.health is not None and connection.welcomed:
                self.health.heard(connection.worker, message.health)
        elif isinstance(message, Started | MeetingPlace) and not self._makes(
            connection, message.task, message.revision
        ):
            pass  # it is over, or another's: nobody speaks of those
        elif isinstance(message, Started):
            self._pool.attempt_started(message.task, message.revision, message.at)
        elif isinstance(message, Result):
            self._take_result(connection, message)
        elif isinstance(message, MeetingPlace):
            self._spawn(self._set_meeting(connection, message))
        elif isinstance(message, Gone):
            self._spawn(self._release(connection, message))
        elif isinstance(message, Draining):
            self._spawn(self._set_draining(connection))
        else:
            raise ProtocolError(f"a worker does not say {type(message).__name__}")

    def _makes(self, connection: _Connection, task: str, revision: int) -> bool:
        """Whether an attempt counts and is made by a worker."""
        held = self._pool.mirror.get(Kind.ATTEMPT, task)
        if held is None or held.mod_revision != revision or not isinstance(held.value, Attempt):
            return False
        return connection.worker in held.value.workers

    async def _set_draining(self, connection: _Connection) -> None:
        held = self._pool.mirror.get(Kind.WORKER, connection.worker)
        if held is not None and isinstance(held.value, WorkerRecord):
            record = replace(held.value, state=WorkerState.DRAINING)
            await self._try(Register(worker=connection.worker, record=record, seen=held.mod_revision))

    def _take_result(self, connection: _Connection, result: Result) -> None:
        """Record what an attempt came to, if it is still the one that counts, and acknowledge it."""
        live = self._pool.live(result.task)
        in_gang = live is not None and len(live.attempt.workers) > 1  # is told nothing more, until its attempt is over
        if connection.told.get(result.task) == result.revision and not in_gang:
            del connection.told[result.task]

        def told(recording: Recording, error: Exception | None) -> None:
            if error is None:
                recorded = recording is Recording.RECORDED
                word = Acknowledge(task=result.task, revision=result.revision, recorded=recorded)
                self._acknowledge(connection, word)
                return
            # It is kept by its worker, who says it again with its next hello.
            log.warning("result of %s: %s", result.task, error)
            self._spawn(_close(connection.socket, "etcd is away"))

        try:
            self._record_result(connection.worker, live, result, told)
        except StoreError as error:  # of a record that is closed: the coordinator ends
            told(Recording.STALE, error)
        except ProtocolError:
            log.exception("the result of task %s cannot be recorded", result.task)

    def _acknowledge(self, connection: _Connection, word: Acknowledge) -> None:
        connection.acknowledgements.append(word)
        if not self._unacknowledged:  # one timer for all connections
            asyncio.get_running_loop().call_later(ACKNOWLEDGED_WITHIN, self._acknowledge_all)
        if len(connection.acknowledgements) == 1:
            self._unacknowledged.append(connection)

    def _acknowledge_all(self) -> None:
        connections, self._unacknowledged = self._unacknowledged, []
        for connection in connections:
            for word in connection.take_acknowledgements():
                connection.outgoing.put_nowait(word)

    async def record_result(self, worker: str, result: Result) -> Recording:
        """Record what a worker says that an attempt came to, if it is the one that counts. Raises what etcd raises."""
        recorded: asyncio.Future[Recording] = asyncio.get_running_loop().create_future()

        def told(recording: Recording, error: Exception | None) -> None:
            if recorded.done():
                return
            if error is None:
                recorded.set_result(recording)
            else:
                recorded.set_exception(error)

        self._record_result(worker, self._pool.live(result.task), result, told)
        return await recorded

    def _record_result(
        self, worker: str, live: LiveTask | None, result: Result, told: Callable[[Recording, Exception | None], object]
    ) -> None:
        """No task of the event loop for each: in a flood they are as much work as all else that a result needs."""
        if live is None or live.revision != result.revision or worker not in live.attempt.workers:
            # The mirror is newer than this attempt: it showed the registration that the worker made after it.
            recent = self._pool.recent(result.task)
            same = recent is not None and (recent.revision, recent.kind) == (result.revision, result.outcome.kind.value)
            told(Recording.RECORDED if same else Recording.STALE, None)
            return
        outcome, attempt = result.outcome, live.attempt
        write: Write[Recording]
        if len(attempt.workers) > 1:
            record = MemberRecord(revision=result.revision, worker=worker, outcome=bounded(outcome))
            write = RecordMember(task=result.task, rank=attempt.workers.index(worker), member=record)
        else:
            write = end_of_attempt(result.task, live.specification, attempt, result.revision, outcome, worker)
        self._record.tell(write, told)

    async def _release(self, connection: _Connection, told: Gone) -> None:
        try:
            await release(self._pool, self._record, connection.worker, told.task, told.revision)
        except StoreError as error:
            log.warning("what the attempt at %s held: %s", told.task, error)
            await _close(connection.socket, "etcd is away")  # over the next connection it is asked again

    async def _set_meeting(self, connection: _Connection, told: MeetingPlace) -> None:
        meeting = Meeting(revision=told.revision, host=told.host, port=told.port)
        try:
            await self._record.answer(Meet(task=told.task, meeting=meeting))
        except StoreError as error:
            log.warning("meeting of %s: %s", told.task, error)
            await _close(connection.socket, "etcd is away")  # it is asked for again over the next one

    # --- what a worker is told ---------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.ATTEMPT:
            self._attempt_changed(change)
        elif change.kind is Kind.ENDING and change.before is None and change.after is not None:
            self._ending_began(change)
        elif change.kind in (Kind.MEETING, Kind.MEMBER) and change.after is not None:
            self._gang_changed(change.names[0])
        elif change.kind is Kind.YIELD and change.after is not None:
            self._ask_to_yield(change.names[0])
        elif change.kind is Kind.WORKER and change.after is None:
            if (connection := self._connections.get(change.names[0])) is not None and connection.welcomed:
                self._spawn(_close(connection.socket, "declared lost: say hello again"))
        elif change.kind is Kind.WORKER and change.after is not None and isinstance(change.after.value, WorkerRecord):
            before = change.before.value if change.before is not None else None
            was = isinstance(before, WorkerRecord) and before.state is WorkerState.DRAINING
            connection = self._connections.get(change.names[0])
            now = change.after.value.state is WorkerState.DRAINING
            if now and not was and connection is not None and connection.welcomed:
                connection.outgoing.put_nowait(Drain())

    def _attempt_changed(self, change: Change) -> None:
        task = change.names[0]
        before = change.before.value if change.before is not None else None
        after = change.after.value if change.after is not None else None
        new = after.workers if isinstance(after, Attempt) else ()
        for worker in before.workers if isinstance(before, Attempt) else ():
            connection = self._connections.get(worker)
            if connection is None or change.before is None:
                continue
            revision = change.before.mod_revision
            noted = self._pool.mirror.get(Kind.ENDING, task, str(revision))  # then it is told by that
            if connection.told.get(task) == revision and noted is None:
                self._cancel(connection, task, revision, NOT_COUNTED)
        for worker in new:
            connection = self._connections.get(worker)
            if connection is not None and connection.welcomed and isinstance(after, Attempt) and change.after:
                self._run(connection, task, after, change.after.mod_revision)

    def _ending_began(self, change: Change) -> None:
        """Tell those workers, also those that have not heard of the attempt: they answer when nothing of it is left."""
        assert change.after is not None
        assert isinstance(change.after.value, Ending)
        task, revision = change.names
        for worker in change.after.value.workers:
            connection = self._connections.get(worker)
            if connection is not None and connection.welcomed:
                self._cancel(connection, task, int(revision), NOT_COUNTED)

    def _gang_changed(self, task: str) -> None:
        live = self._pool.live(task)
        for worker in live.attempt.workers if live is not None else ():
            connection = self._connections.get(worker)
            if live is not None and connection is not None and connection.welcomed:
                self._run(connection, task, live.attempt, live.revision)

    def _run(self, connection: _Connection, task: str, attempt: Attempt, revision: int) -> None:
        live = self._pool.live(task)
        if live is None:
            return
        run = Run(
            task=task,
            number=attempt.number,
            revision=revision,
            alternative=attempt.alternative,
            specification=live.specification,
        )
        if len(attempt.workers) > 1:
            self._run_member(connection, run, attempt)
        elif connection.told.get(task) != revision:
            connection.told[task] = revision
            connection.outgoing.put_nowait(run)
        if live.specification.training:
            self._ask_to_yield(task)

    def _ask_to_yield(self, task: str) -> None:
        """Tell the worker of a training's part that its device is needed, where the record says so of its attempt."""
        live, held = self._pool.live(task), self._pool.mirror.get(Kind.YIELD, task)
        if live is None or held is None or not isinstance(held.value, YieldRequest):
            return
        connection = self._connections.get(live.attempt.workers[0]) if live.attempt.workers else None
        if connection is not None and connection.welcomed and held.value.revision == live.revision:
            wanted_by = held.value.wanted_by
            what = "task" if self._pool.mirror.get(Kind.RESERVATION, wanted_by) is None else "reservation"
            reason = f"gave its device back for the {what} {wanted_by}"
            connection.outgoing.put_nowait(YieldAttempt(task=task, revision=live.revision, reason=reason))

    def _run_member(self, connection: _Connection, run: Run, attempt: Attempt) -> None:
        """Tell a worker its part of a gang's attempt, as far as it is not told and has not ended."""
        rank = attempt.workers.index(connection.worker)
        ended = members_that_ended(self._pool.mirror, run.task, attempt, run.revision)
        if any(member.rank == rank for member in ended):
            return
        known = connection.told.get(run.task) == run.revision
        run = replace(run, rank=rank, world=len(attempt.workers))
        if (why := why_called_off(ended)) != "":
            if connection.called_off.get(run.task) != run.revision:
                connection.called_off[run.task] = connection.told[run.task] = run.revision
                connection.outgoing.put_nowait(replace(run, called_off=why))
        elif known:
            return
        elif (meeting := meeting_of(self._pool.mirror, run.task, run.revision)) is not None:
            connection.told[run.task] = run.revision
            connection.outgoing.put_nowait(replace(run, host=meeting.host, port=meeting.port))
        elif rank == 0:
            connection.outgoing.put_nowait(PickMeeting(task=run.task, revision=run.revision))

    def _cancel(self, connection: _Connection, task: str, revision: int, reason: str) -> None:
        if connection.told.get(task) == revision:
            del connection.told[task]
        connection.called_off.pop(task, None)
        connection.outgoing.put_nowait(CancelAttempt(task=task, revision=revision, reason=reason))

    # --- the parts ---------------------------------------------------------------------------------------------------

    async def _try(self, write: Register) -> None:
        with contextlib.suppress(StoreError):
            await self._record.answer(write)

    async def _refuse(self, socket: Socket, reason: str) -> None:
        with contextlib.suppress(Exception):  # it may be gone
            await socket.send_text(write_message(Refuse(reason=reason)))
        await _close(socket, "refused")

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)


async def _send_all(connection: _Connection) -> None:
    """Send what is queued, until the socket ends: its reader notices that."""
    with contextlib.suppress(Exception):
        while True:
            await connection.socket.send_text(await next_text(connection.outgoing, connection.take_acknowledgements))


async def _close(socket: Socket, reason: str) -> None:
    with contextlib.suppress(Exception):  # it may be closed already
        await socket.close(1000, reason)
