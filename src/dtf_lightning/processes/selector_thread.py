"""`SelectorThread` waits for many files at once in one thread, and calls the callback of each that is ready.

Rules that this file guards:

* callbacks run only in that thread, one after the other, and never for a file that was unregistered meanwhile, even
  if its number has been given to another file since;
* `wake` may be called from any thread and from a signal handler;
* no wait is endless: after `LONGEST_WAIT` the thread wakes up even if nothing has happened;
* `close` ends the thread before it returns, unless the thread itself calls it.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Any, Protocol

LONGEST_WAIT = 60.0
"""Seconds of the longest wait."""
JOIN_TIMEOUT = 30.0
"""Seconds that `close` waits for the thread to end; a callback takes milliseconds."""


class HasFileno(Protocol):
    """Describe a socket, or any other object with a file descriptor."""

    def fileno(self) -> int: ...


class SelectorThread:
    """Call the callback of a registered file when it can be read.

    Args:
        name: name of the thread.
        before_wait: called in the thread before each wait; returns the largest number of seconds to wait, `None` for no
            limit of its own.
    """

    def __init__(self, name: str, before_wait: Callable[[], float | None] = lambda: None) -> None:
        self._before_wait = before_wait
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        for end in (self._wake_reader, self._wake_writer):
            end.setblocking(False)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self.register(self._wake_reader, self._drain)

    def start(self) -> None:
        self._thread.start()

    def register(self, file: HasFileno | int, callback: Callable[[], Any]) -> None:
        """Call `callback` whenever `file` can be read."""
        self._selector.register(file, selectors.EVENT_READ, callback)

    def unregister(self, file: HasFileno | int) -> None:
        """Stop waiting for `file`, before it is closed. Does nothing for a file that is not registered."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(file)

    def wake(self) -> None:
        """Make the thread call `before_wait` again soon."""
        with contextlib.suppress(OSError):  # full: the thread wakes anyway; closed: there is no thread to wake
            self._wake_writer.send(b".")

    def close(self) -> None:
        """End the thread. Files that are still registered stay open: their owners close them. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.wake()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(JOIN_TIMEOUT)
        self._wake_reader.close()
        self._wake_writer.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            wait = self._before_wait()
            for key, _ in self._selector.select(LONGEST_WAIT if wait is None else min(wait, LONGEST_WAIT)):
                if not self._closing.is_set() and self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_reader.recv(4096)
