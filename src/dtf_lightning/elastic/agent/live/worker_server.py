"""The agent's end of its workers' sockets: one thread that reads them all.

A worker's death shows as the end of file on its socket or, where the kernel has pidfds, as the end of its process,
whichever comes first: a socket that a forked child inherited stays open after its owner's death.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import threading
from dataclasses import dataclass, field

from dtf_lightning.elastic.agent.inbox import Push, WorkerGone, WorkerSaid
from dtf_lightning.elastic.link import messages
from dtf_lightning.errors import ProtocolError

log = logging.getLogger(__name__)

_RECEIVE_SIZE = 65536


@dataclass(eq=False)
class _Connection:
    id: int
    socket: socket.socket
    buffer: bytes = b""
    pidfd: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)
    closed: bool = False


class WorkerServer:
    """Listens on a unix socket and pushes `WorkerSaid` and `WorkerGone`.

    `send`, `end` and `close` may be called from any thread.
    """

    def __init__(self, path: str, push: Push) -> None:
        self._push = push
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._connections: dict[int, _Connection] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True, name="dtf-worker-server")

    def start(self) -> None:
        self._thread.start()

    def send(self, connection: int, message: messages.Message) -> None:
        """Never waits: a worker that reads nothing until its buffer is full counts as gone."""
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
        """SIGKILL the worker and what it started (its process group, when it leads one), if it still lives."""
        target = self._connections.get(connection)
        if target is None or pid <= 0:
            return
        with target.lock:
            if not target.closed:  # open: the pid is still this worker's
                kill(pid)

    def close(self) -> None:
        """Idempotent."""
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")
        if self._thread.is_alive():
            self._thread.join(5)
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._listener.close()
        self._wake_reader.close()
        self._wake_writer.close()
        self._selector.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        next_id = 1
        while not self._closing:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    with contextlib.suppress(OSError):
                        accepted, _ = self._listener.accept()
                        self._accept(next_id, accepted)
                        next_id += 1
                elif isinstance(key.data, _Connection) and not key.data.closed:
                    self._read(key.data, process_ended=key.fileobj is not key.data.socket)

    def _accept(self, connection_id: int, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        connection = _Connection(connection_id, accepted)
        self._connections[connection_id] = connection
        self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _read(self, connection: _Connection, *, process_ended: bool) -> None:
        gone = "its process ended" if process_ended else ""
        while True:  # whatever it said before it died is still in the buffer
            try:
                data = connection.socket.recv(_RECEIVE_SIZE)
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
        if connection.pidfd >= 0 or not hasattr(os, "pidfd_open"):
            return
        try:
            connection.pidfd = os.pidfd_open(pid)
        except OSError:  # an old kernel, a sandbox, or another pid namespace: the socket's end of file has to do
            return
        self._selector.register(connection.pidfd, selectors.EVENT_READ, connection)

    def _drop(self, connection: _Connection) -> None:
        with connection.lock:
            if connection.closed:
                return
            connection.closed = True
            self._connections.pop(connection.id, None)
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(connection.socket)
            connection.socket.close()
            if connection.pidfd >= 0:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(connection.pidfd)
                os.close(connection.pidfd)


def kill(pid: int) -> None:
    """SIGKILL a process, with its group if it leads one (torchelastic starts workers in sessions of their own)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.getpgid(pid) == pid and pid != os.getpgrp():
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
