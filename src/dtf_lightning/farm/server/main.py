"""The process of a coordinator: opens its port, runs until SIGTERM or Ctrl-C, ends with a code that says why."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from dtf_lightning import __version__
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.page.app import Page
from dtf_lightning.farm.security.certificates import ReloadingContext, TlsFiles
from dtf_lightning.farm.security.names import Listening
from dtf_lightning.farm.server.access import AuditFile, Guard
from dtf_lightning.farm.server.api import build_app
from dtf_lightning.farm.server.coordinator import Coordinator
from dtf_lightning.farm.server.presence import CoordinatorPlace, wait_for_event
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

log = logging.getLogger(__name__)

SHUTDOWN_TIMEOUT = 5
"""Seconds for requests that are under way when the coordinator ends."""
TICKS_A_SECOND = 10
"""Of uvicorn's server."""
MAX_MESSAGE = 16 * 1024 * 1024


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


class Wire:
    """How a coordinator is reached: its TLS, and the names that it has.

    Raises `SettingsError` for a host that must not be listened on, and for certificates that cannot be used.
    """

    def __init__(self, listening: Listening, files: TlsFiles | None) -> None:
        self._listening = listening
        self.context = ReloadingContext(files) if files is not None else None
        if self.context is not None and (problem := self.context.certificate.problem(time.time())):
            assert files is not None
            raise SettingsError(f"the certificate {files.cert} cannot be used: {problem}")

    @classmethod
    def of(cls, options: CoordinatorOptions) -> Wire:
        """Return that of a coordinator's options."""
        told = options.settings
        files = None
        if (paths := told.tls_files) is not None:
            files = TlsFiles(cert=paths[0], key=paths[1], client_ca=paths[2])
        listening = Listening(
            host=options.host,
            advertise=told.server.advertise,
            tls=files is not None,
            insecure=told.security.insecure,
        )
        return cls(listening, files)

    @property
    def warning(self) -> str:
        """What everybody should know who looks at this farm; "" for nothing."""
        return self._listening.warning

    def address(self, port: int) -> str:
        """Where workers and clients reach it. Raises `SettingsError` where that cannot be known."""
        return self._listening.address(port, self._certified())

    def serves(self, name: str) -> bool:
        """Whether a request may say that it means this host."""
        return self._listening.serves(name, self._certified())

    def _certified(self) -> tuple[str, ...]:
        return self.context.certificate.names if self.context is not None else ()


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
    """Serve until SIGTERM or SIGINT. `say` is called with the address, once it serves.

    Raises `SettingsError` for a port that is taken, for a host that is not loopback without TLS, and for certificates that
    cannot be used; and the fault that ended it.
    """
    asyncio.run(serve(store, options, say, _stop_on_signals))


async def serve(
    store: Store,
    options: CoordinatorOptions,
    say: Callable[[str], None],
    register_stop: Callable[[Callable[[], None]], None],
) -> None:
    """As `run_coordinator`, on a loop that runs. `register_stop` is called with the function that ends it."""
    wire = Wire.of(options)
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
    address = wire.address(listeners[0].getsockname()[1])
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
    audit = AuditFile(options.audit)
    try:
        await coordinator.start()
        page = Page(build_app(coordinator), coordinator, options.token, options.folder)
        app = Guard(page, token=options.token, audit=audit, serves=wire.serves)
        server = _Server(_config(app, wire))
        serving = asyncio.create_task(server.serve(sockets=listeners))
        running = asyncio.create_task(coordinator.run())
        say(address)
        try:
            await asyncio.wait([serving, running], return_when=asyncio.FIRST_COMPLETED)
            if serving.done() and not running.done():
                raise DtfError("the web server has ended by itself")
            await running
        finally:
            page.close()
            server.end()
            running.cancel()
            await asyncio.gather(serving, running, return_exceptions=True)
    finally:
        audit.close()


def _config(app: Guard, wire: Wire) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # heartbeats are the application's own
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
        timeout_keep_alive=60,
        proxy_headers=False,  # anybody can write them: the audit file names the address that the connection comes from
        server_header=False,
    )
    config.load()
    config.ssl = wire.context  # uvicorn's own options know nothing of certificates that change
    return config


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
