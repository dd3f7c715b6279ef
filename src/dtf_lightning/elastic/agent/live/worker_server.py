"""`WorkerServer` is the agent's end of its workers' sockets: one thread reads them all.

A worker's death shows on its lifeline, where it has one, in about a millisecond (`WorkerEnding`). Some milliseconds or
seconds later, when the kernel has freed the worker's memory, it shows as the end of file on its socket or, where the
kernel has pidfds, as the end of its process (`WorkerGone`), whichever comes first: a socket that a forked child inherited
stays open after its owner's death.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from functools import partial

from dtf_lightning.elastic.agent.inbox import Push
from dtf_lightning.elastic.agent.live.inbox import WorkerEnding, WorkerGone, WorkerSaid
from dtf_lightning.elastic.link import messages
from dtf_lightning.errors import ProtocolError
from dtf_lightning.processes.lifeline import LifelineWatch
from dtf_lightning.processes.selector_thread import SelectorThread
from dtf_lightning.processes.signals import open_pidfd, signal_group

log = logging.getLogger(__name__)

_RECEIVE_SIZE = 65536


@dataclass(eq=False)
class _Connection:
    id: int
    socket: socket.socket
    buffer: bytes = b""
    files: list[int] = field(default_factory=list)
    """Descriptors that came with what was read."""
    lifeline: LifelineWatch | None = None
    pidfd: int | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False


class WorkerServer:
    """A thread that listens on a unix socket and reports `WorkerSaid`, `WorkerEnding` and `WorkerGone`.

    `send`, `end` and `close` may be called from any thread.
    """

    def __init__(self, path: str, push: Push) -> None:
        self._push = push
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._connections: dict[int, _Connection] = {}
        self._last_id = 0
        self._reader = SelectorThread("dtf-worker-server")
        self._reader.register(self._listener, self._accept)

    def start(self) -> None:
        self._reader.start()

    def send(self, connection: int, message: messages.Message) -> None:
        """Send a message without waiting: a worker that reads nothing until its buffer is full counts as gone."""
        target = self._connections.get(connection)
        if target is None:
            return
        line = message.encode()
        with target.lock:
            if target.closed:
                return
            try:
                sent = target.socket.send(line)
            except OSError:
                sent = -1
        if sent != len(line):
            log.warning("a worker's socket takes no more (%d of %d bytes of %s)", sent, len(line), message.kind)
            with contextlib.suppress(OSError):
                target.socket.shutdown(socket.SHUT_RDWR)

    def end(self, connection: int, pid: int) -> None:
        """Kill the worker with SIGKILL if it still lives, and what it started (its process group, if it leads one)."""
        target = self._connections.get(connection)
        if target is None or pid <= 0:
            return
        with target.lock:
            if not target.closed:  # open: the pid is still this worker's
                signal_group(pid, signal.SIGKILL)

    def close(self) -> None:
        """Stop listening and close all connections. Idempotent."""
        self._reader.close()
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return  # it went again
        accepted.setblocking(False)
        self._last_id += 1
        connection = _Connection(self._last_id, accepted)
        self._connections[connection.id] = connection
        self._reader.register(accepted, partial(self._read, connection, process_ended=False))

    def _read(self, connection: _Connection, *, process_ended: bool) -> None:
        gone = "its process ended" if process_ended else ""
        while True:  # whatever it said before it died is still in the buffer
            try:
                data, files, _, _ = socket.recv_fds(connection.socket, _RECEIVE_SIZE, 1, socket.MSG_CMSG_CLOEXEC)
                connection.files += files
            except BlockingIOError:
                break
            except OSError as error:
                gone = gone or f"its socket broke ({error})"
                break
            if not data:
                gone = gone or "its process ended or closed the connection"
                break
            connection.buffer += data
        *lines, connection.buffer = connection.buffer.split(b"\n")
        try:
            for line in lines:
                message = messages.decode(line)
                if isinstance(message, messages.HoldsLifeline):
                    self._watch_lifeline(connection)
                    continue
                if isinstance(message, messages.Hello):
                    self._watch_process(connection, message.pid)
                self._push(WorkerSaid(connection.id, message))
        except ProtocolError as error:
            log.error("%s", error)
            gone = str(error)
        if gone:
            self._drop(connection)
            self._push(WorkerGone(connection.id, gone))

    def _watch_process(self, connection: _Connection, pid: int) -> None:
        if connection.pidfd is not None:
            return
        connection.pidfd = open_pidfd(pid)
        # `None` on an old kernel, in a sandbox, from another pid namespace: the socket's end of file has to do.
        if connection.pidfd is not None:
            self._reader.register(connection.pidfd, partial(self._read, connection, process_ended=True))

    def _watch_lifeline(self, connection: _Connection) -> None:
        if connection.lifeline is not None or not connection.files:
            return
        try:
            connection.lifeline = LifelineWatch(connection.files[0])
        except (OSError, ValueError) as error:
            log.warning(
                "a worker's lifeline cannot be watched, its death is noticed some milliseconds later: %s", error
            )
        else:
            self._reader.register(connection.lifeline, partial(self._ends, connection))
        _close_files(connection)

    def _ends(self, connection: _Connection) -> None:
        self._read(connection, process_ended=False)  # whatever it said before
        if not connection.closed:
            self._drop_lifeline(connection)
            self._push(WorkerEnding(connection.id))

    def _drop_lifeline(self, connection: _Connection) -> None:
        if connection.lifeline is not None:
            self._reader.unregister(connection.lifeline)
            connection.lifeline.close()
            connection.lifeline = None
        _close_files(connection)

    def _drop(self, connection: _Connection) -> None:
        with connection.lock:
            if connection.closed:
                return
            connection.closed = True
            self._connections.pop(connection.id, None)
            self._reader.unregister(connection.socket)
            connection.socket.close()
            if connection.pidfd is not None:
                self._reader.unregister(connection.pidfd)
                os.close(connection.pidfd)
            self._drop_lifeline(connection)


def _close_files(connection: _Connection) -> None:
    while connection.files:
        os.close(connection.files.pop())
