"""The process group of one generation: formed, cut, destroyed.

gloo has no abort: `shutdown()` and `abort()` of its process group do nothing, and a collective whose peer is frozen or
gone half-way blocks until the group's timeout. What unblocks it is the end of its connections, so this file knows which
sockets belong to the group (those that appear while it is formed) and shuts them down. Never the listening one: gloo's
accept thread ends the process with `std::terminate` when its socket fails.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from datetime import timedelta

import torch
import torch.distributed as dist

from dtf_lightning.errors import GenerationBroken

log = logging.getLogger(__name__)


def _open_sockets() -> dict[int, str]:
    """File descriptor to `socket:[inode]` of every socket of this process."""
    sockets = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                sockets[int(name)] = target
    return sockets


class GenerationGroup:
    """The default process group of torch.distributed, one generation at a time.

    `form` and `destroy` belong to the main thread; `cut` may come from any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._before: set[str] | None = None
        """Sockets that were open before the group began to form; `None` while there is no group."""
        self._cut = False
        self._forming = False
        self._formed = threading.Event()
        self.backend = ""
        os.register_at_fork(after_in_child=self._close_in_child)

    def form(
        self,
        *,
        host: str,
        port: int,
        prefix: str,
        rank: int,
        world_size: int,
        backend: str,
        connect_timeout: float,
        timeout: timedelta,
        device: torch.device,
    ) -> None:
        """Form the group over the store at `host:port`.

        `prefix` is unique for the generation; `connect_timeout` (seconds) is the wait for the store and the members,
        `timeout` that of every collective afterwards.

        Raises:
            GenerationBroken: it was cut while forming.
            RuntimeError: torch's own errors (a member did not come, the store is gone).
        """
        with self._lock:
            self._before = set(_open_sockets().values())
            self._cut = False
            self.backend = backend
            self._forming = True
            self._formed.clear()
        try:
            store = dist.TCPStore(
                host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=connect_timeout)
            )
            self._raise_if_cut()
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(prefix, store),
                rank=rank,
                world_size=world_size,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,
            )
        finally:
            self._forming = False
            self._formed.set()
        self._raise_if_cut()

    def _raise_if_cut(self) -> None:
        if self._cut:
            raise GenerationBroken("the generation failed while its process group was forming")

    def form_local(self, *, host: str, port: int, prefix: str, rank: int, world_size: int) -> None:
        """A group of this node's workers only, for Lightning's set-up before the first generation."""
        store: dist.Store
        if world_size == 1:
            store = dist.HashStore()
        else:
            tcp = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
            store = dist.PrefixStore(prefix, tcp)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)

    def cut(self) -> None:
        """Break the group off: every thread that blocks in one of its collectives, here or at a peer, gets an error.

        Safe from any thread, at any time, also while the group is forming; without a group it does nothing.
        """
        with self._lock:
            if self._before is None:
                return
            already, self._cut = self._cut, True
            if "nccl" in self.backend and dist.is_initialized():
                # The way out of a hung NCCL collective from another thread (torch >= 2.6); does nothing to gloo.
                dist.distributed_c10d._abort_process_group()
            self._shut_connections_down()
            forming = self._forming
        if forming and not already:
            threading.Thread(target=self._cut_until_formed, daemon=True, name="dtf-group-cutter").start()

    def _cut_until_formed(self) -> None:
        """Connections appear one after the other while a group forms: cut until the main thread has noticed."""
        while self._forming:
            with self._lock:
                self._shut_connections_down()
            self._formed.wait(0.01)

    def _shut_connections_down(self) -> None:
        if self._before is None:
            return
        for descriptor, name in _open_sockets().items():
            if name not in self._before:
                _shut_down(descriptor, name)

    def destroy(self) -> None:
        """Forget the group. Whoever is left in it sees its connections closed."""
        with self._lock:
            self._before = None
        if dist.is_initialized():
            dist.destroy_process_group()

    def _close_in_child(self) -> None:
        # A forked DataLoader worker outlives a SIGKILLed parent by up to 5 s (its watchdog's period); while it holds
        # the group's sockets, no peer sees the end of file.
        if self._before is None:
            return
        for descriptor, name in _open_sockets().items():
            if name not in self._before:
                with contextlib.suppress(OSError):
                    os.close(descriptor)


def _shut_down(descriptor: int, name: str) -> None:
    """Shut one connected socket down, unless the descriptor has come to name another one meanwhile."""
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return
    with socket.socket(fileno=duplicate) as connection, contextlib.suppress(OSError):
        if os.readlink(f"/proc/self/fd/{duplicate}") == name:
            connection.getpeername()  # raises for a listening socket, which must not be touched
            connection.shutdown(socket.SHUT_RDWR)
