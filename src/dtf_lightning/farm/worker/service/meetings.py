"""`Meetings`: where the members of a gang can find its first member, which this worker runs.

A port is held from the moment that it is picked until the attempt's result is forgotten: a socket is bound to it and does
not listen, with `SO_REUSEADDR`, beside which torch's store may bind and listen. So nobody else is given it meanwhile.
"""

from __future__ import annotations

import socket

Key = tuple[str, int]
"""Task and the attempt's revision."""


class Meetings:
    """Belongs to the worker's event loop."""

    def __init__(self) -> None:
        self._held: dict[Key, socket.socket] = {}

    def port(self, key: Key) -> int:
        """Return a free port for an attempt, the same when asked again. Raises `OSError` where there is none."""
        held = self._held.get(key)
        if held is None:
            for task, revision in [other for other in self._held if other[0] == key[0] and other[1] < key[1]]:
                self.forget((task, revision))
            held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                held.bind(("", 0))
            except OSError:
                held.close()
                raise
            self._held[key] = held
        return int(held.getsockname()[1])

    def forget(self, key: Key) -> None:
        """Let an attempt's port go. Idempotent."""
        if (held := self._held.pop(key, None)) is not None:
            held.close()

    def close(self) -> None:
        """Let all go."""
        for key in list(self._held):
            self.forget(key)
