"""The worker's socket to its agent: whole lines in both directions.

Rule that this file guards: forked children (DataLoader workers) hold none of this process's sockets, or the agent would
notice its death late.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref

_sockets: weakref.WeakSet[WorkerSocket] = weakref.WeakSet()


class WorkerSocket:
    """Connected to the unix socket at `path`. Raises `OSError` when nobody listens there.

    Args:
        timeout: seconds to connect, and for each read until `read_timeout` is set.
    """

    def __init__(self, path: str, timeout: float) -> None:
        # Reentrant: a signal handler may send while the main thread is in `send`.
        self._send_lock = threading.RLock()
        self._buffer = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _sockets.add(self)
        try:
            self.read_timeout(timeout)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise

    def read_timeout(self, seconds: float) -> None:
        """How long a read waits from now on."""
        self._socket.settimeout(seconds)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, line: bytes) -> None:
        """Send one line; the other end's death is for the reader to notice."""
        with self._send_lock, contextlib.suppress(OSError):
            self._socket.sendall(line)

    def send_with_file(self, line: bytes, descriptor: int) -> None:
        """Send one short line, and a file with it."""
        with self._send_lock, contextlib.suppress(OSError):
            socket.send_fds(self._socket, [line], [descriptor])

    def read_line(self) -> bytes:
        """One line without its end, or nothing at the end of file. Raises `TimeoutError`; nothing is lost by that."""
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise
            except OSError:
                return b""
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def hang_up(self) -> None:
        """Both ends read the end of file; `close` is still due."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.close()


def _after_fork_in_child() -> None:
    for connection in list(_sockets):
        connection.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
