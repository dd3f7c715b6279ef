"""Forms, cuts and destroys the process group of one generation.

gloo has no abort: `shutdown()` and `abort()` of its process group do nothing, and a collective whose peer is frozen or
gone half-way blocks until the group's timeout. What unblocks it is the end of its connections, so this file knows which
sockets belong to the group (those that appear while it is formed) and shuts them down. It never shuts down the
listening one, because gloo's accept thread ends the process with `std::terminate` when its socket fails; and none that
the user's code opened before or later (a logger's, a database's).

gloo also forgets some waiters when a connection ends; they then sleep until the group's timeout
(`Pair::signalException` of gloo in torch 2.13 wakes those of operations that have not begun). Forgotten are the waiters
of a send whose write fails in gloo's event thread (`Pair::handleRemotePendingRecv`), of a send that is half written,
and of a receive that is half read. So a cut
* ends the reading half only, and holds the connection open until the next group has formed: no peer's write fails;
* first lets what is under way arrive: without the member for whose sake the group is cut, the others' collectives come
  to a halt within a round trip.
A member that dies in the middle of a transfer can still leave such a waiter behind. Nothing can wake it; it is
recognised (`forgotten_waiter.py`) within `FREE_TIMEOUT`, and `on_forgotten` is called, which is to replace its process.

A group that is no longer used is destroyed in a thread (`dropped_groups.py`), while the next one forms; NCCL's in the
calling thread, which has its device. Its sockets, as long as they are open, go into no forked child.

While gloo connects the members, nothing interrupts it: it tries five times to reach one that died right then. So it
connects in a thread, which a cut leaves behind; what comes of it there is dropped.

Private API of torch touched here: `_set_pg_timeout`, `_abort_process_group`, `_world.group_count`, `_world.pg_map`, and the
name by which `init_process_group` finds gloo's class (all of `distributed_c10d`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.collectives.dropped_groups import DroppedGroups
from dtf_lightning.elastic.collectives.end_meeting import all_end_here
from dtf_lightning.elastic.collectives.excepthook import remove_torch_excepthooks
from dtf_lightning.elastic.collectives.forgotten_waiter import is_forgotten
from dtf_lightning.errors import GenerationBroken

log = logging.getLogger(__name__)

T = TypeVar("T")

FREE_TIMEOUT = 4.0
"""Seconds after a cut in which the thread that forms and uses the group has to come out of its collective."""
_FORGOTTEN_AFTER = 2.0
"""The last part of it, in which that thread shows no sign of life."""

_MESH_SHARE = 10
"""One try of gloo to connect the members, who have all arrived, gets this part of `connect_timeout`; gloo makes
five."""

_CONNECTION_LOOK = 60.0
"""Seconds between two lines in the log about a connection that is not there; its own timeout ends the wait."""

_QUIET_SAMPLES, _QUIET_INTERVAL, _QUIET_TIMEOUT = 3, 0.0005, 0.05
"""A group is quiet when this many looks, this far apart, found no byte under way; a cut waits at most so long for it
(seconds)."""

_groups: weakref.WeakSet[GenerationGroup] = weakref.WeakSet()


def _open_sockets() -> dict[int, str]:
    """Return every socket of this process: its file descriptor, and its name as `socket:[inode]`."""
    sockets = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("socket:"):
                sockets[int(name)] = target
    return sockets


@dataclass(frozen=True)
class _StoreConnection:
    address: tuple[str, int]
    store: dist.TCPStore
    sockets: frozenset[str]


class GenerationGroup:
    """The default process group of `torch.distributed`, for one generation after the other.

    `form` and `destroy` belong to the main thread; `cut` may be called from any thread.
    """

    def __init__(self, on_forgotten: Callable[[], object] | None = None) -> None:
        self.on_forgotten = on_forgotten
        """Called in a thread of its own when gloo has forgotten the thread that waits in the group, which was cut."""
        self._lock = threading.Lock()
        self._user = 0
        """The thread that forms and uses the group."""
        self._left = threading.Event()
        """Set when that thread is out of the group."""
        self._before: set[str] | None = None
        """Sockets that were open before the group began to form; `None` while there is no group."""
        self._own: set[str] | None = None
        """The group's own sockets; `None` while they are still appearing, and while there is no group."""
        self._cut = False
        self._forming = False
        self._formed = threading.Event()
        self._connected = threading.Event()
        """Set when what is connected in a thread is there, could not be, or is not waited for any more."""
        self._store: _StoreConnection | None = None
        self._held: dict[str, socket.socket] = {}
        """Duplicates of sockets that keep the connections of a cut group open, for its peers, until the next group
        is formed."""
        self._dropped = DroppedGroups()
        self._former: set[str] = set()
        """Sockets of groups that were dropped, and may not be closed yet."""
        self.backend = ""
        _groups.add(self)

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
        still_wanted: Callable[[], object] = lambda: None,
    ) -> None:
        """Form the group over the store at `host:port`.

        `prefix` is unique for the generation; `connect_timeout` (seconds) bounds the wait for the store and the
        members, `timeout` every collective afterwards (`dist.send` and `dist.recv` keep a tenth of `connect_timeout`:
        use `isend` and `irecv` with `wait(timeout)`). `still_wanted` is called once the group can be cut, and raises if
        the generation was declared broken before that.

        Raises:
            GenerationBroken: the group was cut while it was forming.
            RuntimeError: torch's own errors (a member did not come, the store is gone).
        """
        with self._lock:
            self._before = set(_open_sockets().values())
            self._own = None
            self._cut = False
            self._user = threading.get_ident()
            self._left = threading.Event()
            self.backend = backend
            self._forming = True
            self._formed = threading.Event()
        formed = False
        try:
            still_wanted()
            store = self._meet(host, port, prefix, rank, world_size, timedelta(seconds=connect_timeout))
            _forget_failed_groups()
            # Where a member went away right then, and nobody cuts the group for it, gloo waits five times the group's
            # timeout. All members have arrived, so a short one does, and the real one is set afterwards.
            with self._gloo_in_a_thread():
                dist.init_process_group(
                    backend,
                    store=store,
                    rank=rank,
                    world_size=world_size,
                    timeout=timedelta(seconds=connect_timeout / _MESH_SHARE),
                    device_id=device if device.type == "cuda" else None,
                )
            dist.distributed_c10d._set_pg_timeout(timeout)
            formed = True
        except Exception as error:
            self._raise_if_cut(error)
            raise
        finally:
            self._end_forming(formed=formed)
        self._raise_if_cut()

    def _end_forming(self, *, formed: bool) -> None:
        with self._lock:
            stores = self._store.sockets if self._store is not None else frozenset()
            self._own = set(_open_sockets().values()) - (self._before or set()) - stores
            if self._cut or not formed:
                self._store = None  # shut down, or not to be trusted: the next generation connects anew
            self._forming = False
            self._formed.set()
            if formed:
                self._hang_up()  # all members of the group that was cut have unwound

    def _meet(
        self, host: str, port: int, prefix: str, rank: int, world_size: int, timeout: timedelta
    ) -> dist.PrefixStore:
        """Return the generation's part of the store, once all members have arrived there."""
        store = self._connect(host, port, timeout)
        self._raise_if_cut()
        prefixed = dist.PrefixStore(prefix, store)
        prefixed.set(f"arrived/{rank}", "")
        prefixed.wait([f"arrived/{member}" for member in range(world_size)])
        self._raise_if_cut()
        return prefixed

    def _connect(self, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
        """Return the store at that address; the same agent's is kept from generation to generation.

        Connecting looks the peer's name up, which takes 5 s where reverse DNS does not answer.
        """
        kept = self._store
        if kept is None or kept.address != (host, port):
            before = set(_open_sockets().values())
            store = self._open_store(host, port, timeout)
            kept = _StoreConnection((host, port), store, frozenset(set(_open_sockets().values()) - before))
            self._store = kept
        return kept.store

    def _open_store(self, host: str, port: int, timeout: timedelta) -> dist.TCPStore:
        # torch sleeps up to 16 s between two tries: a store whose host dies at that moment costs the others nothing.
        return self._connect_in_a_thread(
            lambda: dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout),
            f"the store at {host}:{port}",
        )

    @contextlib.contextmanager
    def _gloo_in_a_thread(self) -> Iterator[None]:
        """Let gloo connect in a thread inside the context: a member that dies at that moment costs the others nothing."""
        names: Any = dist.distributed_c10d
        gloo = names.ProcessGroupGloo

        def connect(*args: Any, **kwargs: Any) -> Any:
            names.ProcessGroupGloo = gloo  # whatever else is asked of the name is about the class
            return self._connect_in_a_thread(lambda: gloo(*args, **kwargs), "the members")

        names.ProcessGroupGloo = connect
        try:
            yield
        finally:
            names.ProcessGroupGloo = gloo

    def _connect_in_a_thread(self, connect: Callable[[], T], what: str) -> T:
        """Connect in a thread that a cut leaves behind, because nothing ends torch's waits.

        Raises `GenerationBroken` when the group was cut, and what `connect` raises.
        """
        ended = self._connected = threading.Event()
        found: list[T] = []
        errors: list[Exception] = []

        def work() -> None:
            try:
                found.append(connect())
            except Exception as error:
                errors.append(error)
            ended.set()

        threading.Thread(target=work, daemon=True, name="dtf-connection").start()
        while not (self._cut or ended.wait(_CONNECTION_LOOK)):
            log.debug("connecting %s takes its time", what)
        self._raise_if_cut()
        if errors:
            raise errors[0]
        return found[0]

    def _raise_if_cut(self, cause: Exception | None = None) -> None:
        if self._cut:
            raise GenerationBroken("the generation failed while its process group was forming") from cause

    def wait_for_the_end_of_all(self, prefix: str, batches: int, look: Callable[[], object]) -> None:
        """Wait a while, in no collective, until all members have ended after as many batches: see `all_end_here`."""
        if self._store is not None and dist.get_world_size() > 1:
            store = dist.PrefixStore(prefix, self._store.store)
            all_end_here(store, batches, dist.get_world_size(), dist.get_rank(), look=look)

    def form_local(self, *, host: str, port: int, prefix: str, rank: int, world_size: int) -> None:
        """Form a group of this node's workers only, for Lightning's set-up before the first generation."""
        store: dist.Store
        if world_size == 1:
            store = dist.HashStore()
        else:
            tcp = dist.TCPStore(host, port, is_master=False, wait_for_workers=False)
            store = dist.PrefixStore(prefix, tcp)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)

    def cut(self) -> None:
        """Cut the group: every thread of this process that blocks in one of its collectives gets an error.

        Peers do not notice it: they are cut by their own agents, or see `hang_up` or the end of this process. `cut` is
        safe from any thread, at any time, also while the group is forming; without a group it does nothing.
        """
        with self._lock:
            if self._before is None:
                return
            already, self._cut = self._cut, True
            self._connected.set()
            if self._forming and self._store is not None:
                _shut_all_down(self._store.sockets)  # the main thread may wait in it
            if "nccl" in self.backend and dist.is_initialized():
                # This is the way out of a hung NCCL collective from another thread (torch >= 2.6); it does nothing to
                # gloo.
                dist.distributed_c10d._abort_process_group()
            if not (self._forming or already):
                _wait_until_quiet(self._sockets())
            self._shut_connections_down()
            forming, formed = self._forming, self._formed
        if not (forming or already or "nccl" in self.backend) and self.on_forgotten is not None:
            watch = (self._user, self._left, self.on_forgotten)
            threading.Thread(target=_watch_waiter, args=watch, daemon=True, name="dtf-waiter-watch").start()
        if forming and not already:
            cutter = threading.Thread(
                target=self._cut_until_formed, args=(formed,), daemon=True, name="dtf-group-cutter"
            )
            cutter.start()

    def hang_up(self) -> None:
        """Let the peers of a group that was cut see it: their collectives end with an error."""
        with self._lock:
            self._hang_up()

    def _hang_up(self) -> None:
        for connection in self._held.values():
            connection.close()
        self._held.clear()

    def _cut_until_formed(self, formed: threading.Event) -> None:
        """Cut a forming group until the main thread has noticed: its connections appear one after the other.

        `formed` belongs to the group that was cut: the next one may be forming before this thread looks again.
        """
        while not formed.wait(0.01):
            with self._lock:
                if not formed.is_set():
                    self._shut_connections_down()

    def _shut_connections_down(self) -> None:
        for descriptor, name in self._sockets().items():
            if name in self._held or (connection := _shut_down(descriptor, name)) is None:
                continue
            if self._forming:
                connection.close()  # nothing is sent yet
            else:
                self._held[name] = connection

    def _sockets(self) -> dict[int, str]:
        """Return the group's sockets, as far as they have appeared."""
        before, own = self._before, self._own
        if before is None:
            return {}
        opened = _open_sockets()
        return {
            descriptor: name
            for descriptor, name in opened.items()
            if (name not in before if own is None else name in own)
        }

    def destroy(self) -> None:
        """Forget the group, which ends in a thread. A peer that is still in it then sees its connections closed."""
        self._left.set()
        with self._lock:
            former = self._former.union(self._sockets().values())
            self._former = former.intersection(_open_sockets().values()) if former else former
            self._before = self._own = None
        if dist.is_initialized():
            groups: list[object] = [*dist.distributed_c10d._world.pg_map] if "nccl" not in self.backend else []
            dist.destroy_process_group()
            self._dropped.destroy(groups)
        remove_torch_excepthooks()

    def close(self) -> None:
        """Forget the group, wait until it is destroyed, and end the connection to the store. Idempotent."""
        self.destroy()
        self._dropped.wait()
        self.hang_up()
        self._store = None

    def _close_in_child(self) -> None:
        # A forked DataLoader worker outlives a SIGKILLed parent by up to 5 s (its watchdog's period); while it holds
        # the group's sockets, no peer sees the end of file.
        names = self._former.union(self._sockets().values())
        for descriptor, name in _open_sockets().items():
            if name in names:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        for connection in self._held.values():
            with contextlib.suppress(OSError):
                connection.close()


def _watch_waiter(user: int, left: threading.Event, on_forgotten: Callable[[], object]) -> None:
    """Look whether a thread comes out of the group that was cut."""
    end = time.monotonic() + FREE_TIMEOUT
    while not left.wait(max(0.0, end - _FORGOTTEN_AFTER - time.monotonic())):
        if is_forgotten(user, _FORGOTTEN_AFTER, left):
            on_forgotten()
            return
        end = time.monotonic() + FREE_TIMEOUT  # it is busy with something else, and may still come to a collective


def _after_fork_in_child() -> None:
    for group in list(_groups):
        group._close_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _forget_failed_groups() -> None:
    """Count process groups from 0 again: torch makes their count a part of every key in the store.

    A count that was raised by a group that could not be formed stays raised: this member would look for the others
    under another name, in this generation and in all that follow.
    """
    dist.distributed_c10d._world.group_count = 0


def _shut_all_down(names: frozenset[str]) -> None:
    for descriptor, name in _open_sockets().items():
        if name in names and (connection := _shut_down(descriptor, name)) is not None:
            connection.close()


def _wait_until_quiet(descriptors: Iterable[int]) -> None:
    """Wait until no byte is under way on these connections, at most `_QUIET_TIMEOUT` (a frozen peer does not read)."""
    quiet = 0

    def has_been_quiet() -> bool:
        nonlocal quiet
        quiet = 0 if any(_bytes_under_way(descriptor) for descriptor in descriptors) else quiet + 1
        return quiet > _QUIET_SAMPLES  # for so many intervals: gloo needs the last one for what it has just read

    with contextlib.suppress(TimeoutError):
        poll_until(has_been_quiet, _QUIET_TIMEOUT, "silence", interval=_QUIET_INTERVAL)


def _bytes_under_way(descriptor: int) -> int:
    """Return the number of bytes received and not yet read, or written and not yet acknowledged."""
    count = 0
    for request in (termios.FIONREAD, termios.TIOCOUTQ):
        with contextlib.suppress(OSError):
            count += int.from_bytes(fcntl.ioctl(descriptor, request, bytes(4)), sys.byteorder)
    return count


def _shut_down(descriptor: int, name: str) -> socket.socket | None:
    """Shut the reading half of a connected socket down; return a duplicate, which keeps the connection open.

    Returns `None` if the socket is not connected, or if the descriptor has come to name another one meanwhile.
    """
    try:
        duplicate = os.dup(descriptor)
    except OSError:
        return None
    if os.readlink(f"/proc/self/fd/{duplicate}") != name:
        os.close(duplicate)
        return None
    connection = socket.socket(fileno=duplicate)
    try:
        connection.getpeername()  # raises for a listening socket, which must not be touched
        connection.shutdown(socket.SHUT_RD)
    except OSError:
        connection.close()
        return None
    return connection
