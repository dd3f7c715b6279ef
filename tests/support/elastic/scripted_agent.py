"""An agent on a real unix socket that says what a test tells it to say."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from pathlib import Path
from typing import TypeVar

from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.generation import Generation

Said = TypeVar("Said", bound=messages.Message)

DEADLINE = 60.0
"""Seconds; only a failing test waits this long."""


def welcome(**changed) -> messages.Welcome:
    fields = {
        "run_id": "run", "node": "n1", "joiner": False, "rank": 0, "world_size": 1, "store_host": "127.0.0.1",
        "store_port": 1, "incarnation": 1, "num_local_workers": 1, "heartbeat_interval": 30.0, "rescale_timeout": 30.0,
    }  # fmt: skip
    return messages.Welcome(**{**fields, **changed})


def assign(number: int) -> messages.Assign:
    return messages.Assign(generation=Generation(number=number).to_json(), rank=0, world_size=1)


class ScriptedAgent:
    """Serves one worker: answers its hello with `greeting` and keeps what it says."""

    def __init__(self, folder: Path, greeting: messages.Message | bytes | None = None) -> None:
        self.path = str(folder / "agent")
        self.greeting = welcome() if greeting is None else greeting
        self.said: queue.Queue[messages.Message | None] = queue.Queue()
        """What the worker said; `None` for its end of file."""
        self.heartbeats: queue.Queue[messages.Heartbeat] = queue.Queue()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, name="scripted-agent", daemon=True)
        self._thread.start()

    def send(self, *said: messages.Message | bytes) -> None:
        """All in one piece, as the kernel may hand them over."""
        assert self._connection is not None
        self._connection.sendall(b"".join(one if isinstance(one, bytes) else one.encode() for one in said))

    def expect(self, kind: type[Said]) -> Said:
        """The worker's next word, which is of this kind."""
        message = self.said.get(timeout=DEADLINE)
        assert isinstance(message, kind), f"expected {kind.__name__}, got {message!r}"
        return message

    def hang_up(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        self.hang_up()
        self._thread.join(DEADLINE)
        self._listener.close()

    def _serve(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
        except OSError:  # closed before anybody came
            return
        with self._connection, self._connection.makefile("rb") as lines:
            for line in lines:
                message = messages.decode(line)
                if isinstance(message, messages.Heartbeat):
                    self.heartbeats.put(message)
                    continue
                if isinstance(message, messages.HoldsLifeline):
                    continue  # the file with it is closed by the kernel
                self.said.put(message)
                if isinstance(message, messages.Hello):
                    self.send(self.greeting)
            self.said.put(None)
