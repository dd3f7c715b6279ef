"""`WorkerLine` is the keeper's end of the socket to its worker: it never waits."""

from __future__ import annotations

import logging
import selectors
import socket
from collections.abc import Callable

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.worker.keeper.messages import Lines, Message, pack, unpack

log = logging.getLogger(__name__)

PIECE = 1 << 16


class WorkerLine:
    """Send and receive messages.

    Args:
        hear: is called with each message.
        gone: is called once, when the worker has closed its end or has sent what is no message.
    """

    def __init__(
        self,
        connection: socket.socket,
        selector: selectors.BaseSelector,
        hear: Callable[[Message], object],
        gone: Callable[[], object],
    ) -> None:
        self._connection, self._selector, self._hear, self._gone = connection, selector, hear, gone
        self._lines = Lines()
        self._waiting = bytearray()
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, self._ready)

    @property
    def is_idle(self) -> bool:
        """Whether the worker has taken all that was said."""
        return not self._waiting

    def say(self, message: Message) -> None:
        self._waiting += pack(message)
        self._send()

    def close(self) -> None:
        """Idempotent."""
        if self._connection.fileno() >= 0:
            self._selector.unregister(self._connection)
            self._connection.close()

    def _ready(self) -> None:
        self._send()
        try:
            data = self._connection.recv(PIECE)
            for line in self._lines.add(data):
                self._hear(unpack(line))
        except BlockingIOError:
            return
        except (OSError, ProtocolError) as error:
            log.warning("the worker is gone: %s", error)
            data = b""
        if not data:
            self.close()
            self._gone()

    def _send(self) -> None:
        if self._connection.fileno() < 0:
            return
        try:
            while self._waiting:
                del self._waiting[: self._connection.send(self._waiting)]
        except BlockingIOError:
            pass
        except OSError:  # it is gone, which the end of the file will say
            self._waiting.clear()
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._waiting else 0)
        if self._selector.get_key(self._connection).events != wanted:
            self._selector.modify(self._connection, wanted, self._ready)
