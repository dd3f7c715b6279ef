"""The process of a coordinator: opens its port, runs until SIGTERM or Ctrl-C, ends with a code that says why."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from dtf_lightning import __version__
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.page.app import Page
from dtf_lightning.farm.security.audit import AuditFile, audit_key
from dtf_lightning.farm.server.access import Guard
from dtf_lightning.farm.server.api import build_app
from dtf_lightning.farm.server.coordinator import Coordinator
from dtf_lightning.farm.server.doors.doors import Doors
from dtf_lightning.farm.server.presence import CoordinatorPlace, wait_for_event
from dtf_lightning.farm.server.upkeep.stores import refuse_half_restored
from dtf_lightning.farm.server.wire.reach import Wire
from dtf_lightning.farm.server.wire.serving import server_config
from dtf_lightning.farm.server.wire.turnstile import turnstile
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

log = logging.getLogger(__name__)

COLLECT_AFTER = 20_000
"""Objects that may be garbage in cycles, after which Python looks for such; its own number is 700."""
TICKS_A_SECOND = 10
"""Of uvicorn's server."""


@dataclass(frozen=True, kw_only=True)
class CoordinatorOptions:
    """What a coordinator is started with."""

    farm: str
    name: str
    host: str
    port: int
    """0: a free one."""
    folder: Path
    """Of the farm's files, which all its coordinators share."""
    token: str
    audit: Path
    settings: CoordinatorSettings = field(default_factory=CoordinatorSettings)


class _Server(uvicorn.Server):
    """Leaves signals alone: the coordinator has to sign off first. Wakes up once a second, uvicorn's own ten times."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Close all connections, and stop serving."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """See uvicorn, whose every tenth tick is one of these."""
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += TICKS_A_SECOND
            await wait_for_event(self._ending, 1.0)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_coordinator(store: Store, options: CoordinatorOptions, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. `say` is called with the address where it listens, once it serves.

    Raises `SettingsError` for a port that is taken, for a host that is not loopback without TLS, for certificates that
    cannot be used, and while a backup is being put back; and the fault that ended it.
    """

    def ready(address: str) -> None:
        _collect_rarely()
        say(address)

    asyncio.run(serve(store, options, ready, _stop_on_signals))


async def serve(
    store: Store,
    options: CoordinatorOptions,
    say: Callable[[str], None],
    register_stop: Callable[[Callable[[], None]], None],
) -> None:
    """As `run_coordinator`, on a loop that runs. `register_stop` is called with the function that ends it."""
    wire = Wire.of(options.host, options.settings)
    if wire.warning:
        log.warning("%s", wire.warning)
    with contextlib.ExitStack() as stack:
        ports = (options.port, *options.settings.server.more_ports)
        listeners = [stack.enter_context(listen(options.host, port)) for port in ports]
        await _serve_on(listeners, store, options, wire, say, register_stop)


def _stop_on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop)


async def _serve_on(
    listeners: list[socket.socket],
    store: Store,
    options: CoordinatorOptions,
    wire: Wire,
    say: Callable[[str], None],
    register_stop: Callable[[Callable[[], None]], None],
) -> None:
    port = listeners[0].getsockname()[1]
    address = wire.address(port)
    await asyncio.to_thread(refuse_half_restored, store, options.farm)
    coordinator = Coordinator(
        store,
        CoordinatorPlace(
            farm=options.farm,
            name=options.name,
            address=address,
            folder=options.folder,
            version=__version__,
            settings=options.settings,
            warning=wire.warning,
        ),
    )
    register_stop(coordinator.stop)
    audit = AuditFile(options.audit, audit_key(options.token))
    try:
        await coordinator.start()
        doors = Doors.of(
            coordinator,
            options.token,
            options.farm,
            audit.write,
            keys=options.settings.secrets_source,
            shared=options.settings.shared_secret,
        )
        page = Page(build_app(coordinator, doors), coordinator, options.token, options.folder, doors)
        app = Guard(page, token=options.token, authenticator=doors.authenticator, audit=audit, serves=wire.serves)
        server = _Server(server_config(turnstile(app, wire, options.settings), wire, options.settings.limits))
        serving = asyncio.create_task(server.serve(sockets=listeners))
        running = asyncio.create_task(coordinator.run())
        tidying = asyncio.create_task(doors.office.run(lambda: coordinator.leads))
        say(wire.own_address(port))
        try:
            await asyncio.wait([serving, running], return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not running.done():
                raise DtfError("the web server has ended by itself")
            await running
        finally:
            page.close()
            coordinator.pool.close()
            server.end()
            running.cancel()
            tidying.cancel()
            await asyncio.gather(serving, running, tidying, return_exceptions=True)
    finally:
        audit.close()


def _collect_rarely() -> None:
    """Let Python's collector of cycles leave alone what is there for good, and look at the rest less often.

    A task is many small objects that live for long and no cycles: in a flood the collector looked at all of them, and at all imported
    modules, again and again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. `port`: 0 for a free one. Raises `SettingsError` for one that is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only where it is told that this is TCP. With it the second of two writes, such
    # as an answer's body behind its head, waits for the first one's delayed acknowledgement: 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} of {host} is taken, perhaps by a farm that runs already (`dtf farm status`): choose another "
                "with --port, or 0 for a free one"
            ) from error
        raise SettingsError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from error
    listener.set_inheritable(False)
    return listener
