"""The mesh: links between agents, which answer one question: does that agent's process still exist?

An agent that dies closes its links; its port then refuses. Both together are proof, and come within milliseconds; a
broken link alone is not. A host that freezes or falls off the network gives no proof at all: there the lease decides,
and the probe only tells whether the node itself lives on while etcd is away.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from dataclasses import dataclass
from enum import Enum
from functools import partial

from dtf_lightning.elastic.agent.inbox import PeerAnswered, PeerDead, Push
from dtf_lightning.processes.selector_thread import SelectorThread

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between tries to connect. The first pause is short: a process that is being killed closes its sockets one by
one, and for a moment its port takes connections that it will never serve.
"""
_PING = b"?"
_LINE_END = b"\n"


class _LinkState(Enum):
    WAITING = "waiting"  # for the next try to connect
    CONNECTING = "connecting"
    UP = "up"


@dataclass(eq=False)
class _Link:
    """This agent's connection to one peer."""

    node: str
    address: tuple[str, int]
    state: _LinkState = _LinkState.WAITING
    socket: socket.socket | None = None
    try_at: float = 0.0
    pause: float = FIRST_PAUSE
    was_up: bool = False
    buffer: bytes = b""
    probing: bool = False


class Mesh:
    """A thread that keeps a link to every peer, and answers on the links that peers keep to this agent.

    Pushes `PeerDead` once per peer, and `PeerAnswered` for every answered `probe`.
    """

    def __init__(self, node: str, push: Push, *, host: str = "") -> None:
        self._node = node
        self._push = push
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        self._listener = socket.create_server(("", 0), family=family, backlog=128, dualstack_ipv6=both)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._host = host
        self._lock = threading.Lock()
        self._wanted: dict[str, tuple[str, int]] = {}
        """The peers that `watch` has asked for; under the lock."""
        self._probes: list[str] = []
        """The peers that `probe` has asked for; under the lock."""
        self._links: dict[str, _Link] = {}
        self._dead: set[str] = set()
        self._inbound: set[socket.socket] = set()
        self._loop = SelectorThread("dtf-mesh", self._follow_wishes)
        self._loop.register(self._listener, self._accept)

    def start(self) -> None:
        self._loop.start()

    def watch(self, peers: dict[str, tuple[str, int]]) -> None:
        """Keep links to exactly these nodes, given as node -> (host, port)."""
        with self._lock:
            if peers == self._wanted:
                return
            self._wanted = dict(peers)
        self._loop.wake()

    def probe(self, node: str) -> None:
        """Ask a peer for a sign of life; `PeerAnswered` or `PeerDead` follows, or nothing if its host is frozen."""
        with self._lock:
            self._probes.append(node)
        self._loop.wake()

    def close(self) -> None:
        """End the thread and close all links. Idempotent."""
        self._loop.close()
        for link in self._links.values():
            if link.socket is not None:
                link.socket.close()
        for accepted in self._inbound:
            accepted.close()
        self._listener.close()

    # --- the thread --------------------------------------------------------------------------------------------------

    def _follow_wishes(self) -> float | None:
        """Do what is due; return the seconds until there is more to do."""
        with self._lock:
            wanted = dict(self._wanted)
            probes, self._probes = self._probes, []
        for node in [node for node in self._links if node not in wanted]:
            self._disconnect(self._links.pop(node))
        for node, address in wanted.items():
            if node not in self._links and node not in self._dead:
                self._links[node] = _Link(node, address)
        for node in probes:
            if node in self._links:
                self._probe(self._links[node])
        now = time.monotonic()
        for link in list(self._links.values()):
            if link.state is _LinkState.WAITING and link.try_at <= now:
                self._connect(link)
            elif link.state is _LinkState.CONNECTING and link.try_at <= now:  # no answer at all: frozen or unreachable
                self._retry_later(link)
        waiting = [link.try_at for link in self._links.values() if link.state is not _LinkState.UP]
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def _connect(self, link: _Link) -> None:
        try:
            family, kind, _, _, address = socket.getaddrinfo(*link.address, type=socket.SOCK_STREAM)[0]
            link.socket = socket.socket(family, kind)
            link.socket.setblocking(False)
            result = link.socket.connect_ex(address)
        except OSError as error:
            log.debug("no link to %s at %s: %s", link.node, link.address, error)
            self._retry_later(link)
            return
        if result not in (0, errno.EINPROGRESS):
            self._connect_failed(link, result)
            return
        link.state, link.try_at = _LinkState.CONNECTING, time.monotonic() + CONNECT_TIMEOUT
        link.buffer = b""
        self._loop.register(link.socket, partial(self._link_ready, link))  # the peer speaks first

    def _connect_failed(self, link: _Link, error: int) -> None:
        # A port that was ours to reach before, or lies on this very machine, refuses only when its process is gone;
        # anywhere else a firewall may say the same.
        if error == errno.ECONNREFUSED and (link.was_up or link.address[0] == self._host):
            self._dies(link, "its agent's process is gone (link closed, port refused)")
        else:
            self._retry_later(link)

    def _link_ready(self, link: _Link) -> None:
        assert link.socket is not None
        try:
            data = link.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            data = b""
            if link.state is _LinkState.CONNECTING:
                self._connect_failed(link, error.errno or 0)
                return
        if not data:
            if link.state is _LinkState.CONNECTING:
                self._retry_later(link)
                return
            self._disconnect(link)
            link.state, link.try_at = _LinkState.WAITING, 0.0  # reconnect at once: refused means dead
            return
        if link.state is _LinkState.CONNECTING:
            link.buffer += data
            name, found, data = link.buffer.partition(_LINE_END)
            if not found:
                return
            if name.decode(errors="replace") != link.node:
                self._dies(link, "another process listens on its port")
                return
            link.state, link.was_up, link.pause = _LinkState.UP, True, FIRST_PAUSE
            if link.probing:
                self._probe(link)
        if data and link.probing:
            link.probing = False
            self._push(PeerAnswered(link.node))

    def _probe(self, link: _Link) -> None:
        link.probing = True
        if link.state is _LinkState.UP and link.socket is not None:
            with contextlib.suppress(OSError):  # a dead link shows as readable
                link.socket.send(_PING)
        elif link.state is _LinkState.WAITING:
            link.try_at = 0.0

    def _dies(self, link: _Link, cause: str) -> None:
        self._disconnect(link)
        self._links.pop(link.node, None)
        self._dead.add(link.node)
        self._push(PeerDead(link.node, cause))

    def _retry_later(self, link: _Link) -> None:
        self._disconnect(link)
        link.state, link.try_at = _LinkState.WAITING, time.monotonic() + link.pause
        link.pause = min(2 * link.pause, LONGEST_PAUSE)

    def _disconnect(self, link: _Link) -> None:
        if link.socket is not None:
            self._loop.unregister(link.socket)
            link.socket.close()
            link.socket = None

    # --- the peers' links to us --------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        self._inbound.add(accepted)
        self._loop.register(accepted, partial(self._answer, accepted))
        self._reply(accepted, self._node.encode() + _LINE_END)

    def _answer(self, accepted: socket.socket) -> None:
        try:
            data = accepted.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._reply(accepted, _PING)
            return
        self._loop.unregister(accepted)
        self._inbound.discard(accepted)
        accepted.close()

    def _reply(self, accepted: socket.socket, data: bytes) -> None:
        with contextlib.suppress(OSError):
            accepted.send(data)
