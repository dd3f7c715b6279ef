"""`WatchedStore` is a connection to a TCPStore of which it can be seen that the store is gone.

torch prints a stack of C++ where it is asked for something then, in every worker of a run whose first node leaves.
"""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta

import torch.distributed as dist


class WatchedStore:
    """A connection for one thread.

    Args:
        host: the store's host.
        port: its port.
        patience: the longest wait for the store, and for each answer.

    Raises torch's `DistNetworkError` or `DistStoreError` when the store does not answer in time.
    """

    def __init__(self, host: str, port: int, patience: timedelta) -> None:
        before = set(_connections(port))
        self.store = dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=patience, multi_tenant=True
        )
        self._sockets = [
            socket.socket(fileno=os.dup(descriptor)) for descriptor in _connections(port) if descriptor not in before
        ]

    def gone(self) -> bool:
        """Tell whether the store has closed the connection."""
        return any(map(_is_closed, self._sockets))

    def close(self) -> None:
        """End the connection. Idempotent."""
        while self._sockets:
            self._sockets.pop().close()
        del self.store


def _connections(port: int) -> list[int]:
    """Return the descriptors of this process's connections to that port, of whatever host."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                peer = connection.getpeername()
            if isinstance(peer, tuple) and peer[1] == port:
                found.append(int(name))
    return found


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
