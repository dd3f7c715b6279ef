"""`Link`: a worker's connection to one of its farm's coordinators, and what goes over it.

Rules that this file guards:
- The worker dials out, to any coordinator; where one does not welcome it in time, the next is tried. What it runs goes
  on meanwhile.
- A result is said in every `hello` until it is acknowledged; only then its place on the disk is given up. One that
  became sayable between `hello` and `welcome` is said then: what is said twice is recorded once.
- A result is said after all of its attempt's output is stored.
- `run` for what runs already, or has a result that is kept, does nothing; `cancel` ends what runs, if it is that attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from dtf_lightning.errors import ProtocolError, SettingsError
from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.messages import (
    HEARTBEAT,
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
    read_messages,
    write_message,
)
from dtf_lightning.farm.rules.health import WorkerHealth
from dtf_lightning.farm.security.trust import Trust, WireFaults, is_mute

log = logging.getLogger(__name__)

OPEN_TIMEOUT = 1.5
"""Seconds for a connection: a frozen coordinator's kernel takes it, and nothing more comes."""
WELCOME_TIMEOUT = 10.0
MAX_MESSAGE = 16 * 1024 * 1024
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
NO_TOKEN = (FarmUnreachable, FarmRefused)
"""Raised where no coordinator gives the next token."""


class Refused(ProtocolError):
    """The farm does not take this worker."""


class Workplace(Protocol):
    """What a link asks of the worker. Called on the event loop; none of it waits."""

    def hello(self) -> Hello:
        """Who the worker is, and what it runs and keeps now."""
        ...

    def catch_up(self) -> list[Started | Result]:
        """What to say once the worker is welcome: what runs since when, and which results are kept by now."""
        ...

    def run_attempt(self, message: Run) -> None:
        """Make an attempt."""
        ...

    def cancel(self, message: CancelAttempt) -> None:
        """End an attempt."""
        ...

    def yield_device(self, message: YieldAttempt) -> None:
        """Let a training's part leave."""
        ...

    def pick_meeting(self, message: PickMeeting) -> None:
        """Say where the members of a gang's attempt can meet, of which this worker has the first."""
        ...

    def acknowledged(self, message: Acknowledge) -> None:
        """Forget a result."""
        ...

    def drain(self) -> None:
        """End when what runs has ended."""
        ...


class Link:
    """Runs on an event loop: `run()` until it is cancelled.

    Args:
        addresses: of coordinators; those that a coordinator names later are added.
        token: the farm's, or one for this worker; or what returns one that is good, in a thread.
        workplace: the worker.
        health: looks at the machine; is called in a thread. `None`: nothing is reported.
        health_interval: seconds between two reports.
        trust: by which coordinators' certificates are verified, and with which certificate the worker shows itself.
    """

    def __init__(
        self,
        addresses: tuple[str, ...],
        token: str | Callable[[], str],
        workplace: Workplace,
        *,
        health: Callable[[], WorkerHealth] | None = None,
        health_interval: float = 30.0,
        trust: Trust | None = None,
    ) -> None:
        self._trust = trust or Trust()
        self._faults = WireFaults(self._trust)
        self._health, self._health_interval = health, health_interval
        self.addresses = list(addresses)
        self._token = token
        self._workplace = workplace
        self._outgoing: asyncio.Queue[FromWorker] = asyncio.Queue()
        self._connected = asyncio.Event()
        self._welcomed = False
        """Whether a coordinator has ever taken it."""
        self.host = ""
        """This machine's address towards the coordinator that it is connected with."""

    @property
    def connected(self) -> asyncio.Event:
        """Set while a coordinator has welcomed the worker."""
        return self._connected

    def say(self, message: Started | Result | MeetingPlace | Gone | Draining) -> None:
        """Send a message if there is a connection; without one, the next `hello` says as much."""
        if self._connected.is_set():
            self._outgoing.put_nowait(message)

    async def run(self) -> None:
        """Stay connected. Raises `Refused`, and `SettingsError` for files of certificates that cannot be used at the start."""
        pause, number = SHORTEST_PAUSE, random.randrange(1 << 16)
        while True:
            address = self.addresses[number % len(self.addresses)]
            try:
                async with self._open(address) as socket:
                    await self._talk(socket)
            except Refused:
                raise
            except (OSError, TimeoutError, EOFError, WebSocketException, ProtocolError, *NO_TOKEN) as error:
                await self._failed(address, error)
            except SettingsError as error:  # files of certificates: they may be about to be replaced
                if not self._welcomed:
                    raise
                log.warning("coordinator %s: %s", address, error)
            if self._connected.is_set():
                self._connected.clear()
                pause = SHORTEST_PAUSE
                log.warning("the connection to %s ended; attempts go on", address)
            number += 1
            if number % len(self.addresses) == 0 or len(self.addresses) == 1:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _failed(self, address: str, error: Exception) -> None:
        """Note that a coordinator was not reached. Raises `Refused` at the start, where waiting would not mend it."""
        if not self._welcomed and is_mute(error):
            told = await asyncio.to_thread(self._faults.failed, address, error)
        else:
            told = self._faults.failed(address, error, look=False)
        if told is None:
            log.info("coordinator %s: %r", address, error)
            return
        log.warning("coordinator %s", told)
        if not self._welcomed and self._faults.hopeless(self.addresses):
            raise Refused(told) from error

    @contextlib.asynccontextmanager
    async def _open(self, address: str) -> AsyncIterator[ClientConnection]:
        url = "ws" + address.removeprefix("http") + "/ws/worker"
        token = self._token if isinstance(self._token, str) else await asyncio.to_thread(self._token)
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with connect(
                url,
                additional_headers=headers,
                open_timeout=OPEN_TIMEOUT,
                close_timeout=1,
                max_size=MAX_MESSAGE,
                ping_interval=None,
                compression=None,
                proxy=None,
                ssl=self._trust.context() if address.startswith("https://") else None,
            ) as socket:
                self.host = str(socket.local_address[0])
                yield socket
        except InvalidHandshake as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status in (401, 403):
                reason = _reason(error) or "is the token that of this farm?"
                raise Refused(f"the farm at {address} refused this worker (HTTP {status}): {reason}") from error
            raise

    async def _talk(self, socket: ClientConnection) -> None:
        self._outgoing = asyncio.Queue()
        await socket.send(write_message(self._workplace.hello()))
        async with asyncio.timeout(WELCOME_TIMEOUT):
            welcome, *more = read_messages(await socket.recv())
        if isinstance(welcome, Refuse):
            raise Refused(f"the farm does not take this worker: {welcome.reason}")
        if not isinstance(welcome, Welcome):
            raise ProtocolError(f"expected welcome, got {type(welcome).__name__}")
        self._faults.answered()
        self._welcomed = True
        self.addresses = list(dict.fromkeys([*self.addresses, *welcome.addresses]))
        self._connected.set()
        log.info("welcomed by %s", welcome.coordinator)
        for message in self._workplace.catch_up():
            self._outgoing.put_nowait(message)
        for told in more:
            self._hear(told)
        jobs = [
            asyncio.create_task(job) for job in (self._beat(), self._report(), self._send(socket), self._listen(socket))
        ]
        try:
            await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
            for job in jobs:
                if job.done():
                    job.result()
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)

    async def _beat(self) -> None:
        while True:
            self._outgoing.put_nowait(Heartbeat())
            await asyncio.sleep(HEARTBEAT)

    async def _report(self) -> None:
        """Say how the machine is, now and then; a disk that does not answer holds up no heartbeat."""
        while self._health is not None:
            self._outgoing.put_nowait(Heartbeat(health=await asyncio.to_thread(self._health)))
            await asyncio.sleep(self._health_interval)
        await asyncio.Event().wait()

    async def _send(self, socket: ClientConnection) -> None:
        while True:
            await socket.send(await next_text(self._outgoing))

    async def _listen(self, socket: ClientConnection) -> None:
        while True:
            async with asyncio.timeout(SILENCE):
                told = read_messages(await socket.recv())
            for message in told:
                self._hear(message)

    def _hear(self, message: FromWorker | FromCoordinator) -> None:
        if isinstance(message, Run):
            self._workplace.run_attempt(message)
        elif isinstance(message, PickMeeting):
            self._workplace.pick_meeting(message)
        elif isinstance(message, CancelAttempt):
            self._workplace.cancel(message)
        elif isinstance(message, YieldAttempt):
            self._workplace.yield_device(message)
        elif isinstance(message, Acknowledge):
            self._workplace.acknowledged(message)
        elif isinstance(message, Drain):
            self._workplace.drain()
        elif isinstance(message, Refuse):
            raise Refused(f"the farm does not take this worker: {message.reason}")
        elif not isinstance(message, Heartbeat):
            raise ProtocolError(f"a coordinator does not say {type(message).__name__}")


def _reason(error: InvalidHandshake) -> str:
    """Return what a coordinator has said about its refusal; "" if it has not said it as the API does."""
    try:
        return str(json.loads(error.response.body)["error"])  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, KeyError):
        return ""
