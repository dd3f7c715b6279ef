"""Looks after this node's workers: greets them, listens, passes orders on, ends the frozen and the left over.

Rules that this file guards:

* no worker outlives its incarnation: when one fails its siblings end too, with a delay in which torchelastic sees the
  one whose fault it was;
* a worker from which nothing is heard for `heartbeat_timeout` while it is in a generation is ended;
* a worker is greeted when this node's place is known, or after `WELCOME_PATIENCE` as a newcomer of unknown rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from dtf_lightning.clock import Clock
from dtf_lightning.elastic.agent.live.local_node import LocalNode, LocalWorker, Orders
from dtf_lightning.elastic.agent.live.worker_server import WorkerServer
from dtf_lightning.elastic.events import NodeJoined, WorkerLost
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunView
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

SIBLING_GRACE = 0.5
"""Seconds from a worker's end to that of its siblings: torchelastic looks every 0.1 s and blames whom it sees ended."""
RAISING_GRACE = 15.0
"""Seconds that a worker which is to raise (refused, aborted, dying by its own error) gets to tear down."""
WELCOME_PATIENCE = 5.0
"""Seconds that a worker waits for this node's place to be known; less than the worker's own `CONNECT_TIMEOUT`."""


class Caretaker:
    """Between the node's state and the workers' sockets. Used by the loop's thread only."""

    def __init__(
        self,
        node: LocalNode,
        server: WorkerServer,
        settings: ElasticSettings,
        clock: Clock,
        report: Callable[[Event], None],
    ) -> None:
        self._node = node
        self._server = server
        self._settings = settings
        self._clock = clock
        self._report = report
        self._unwelcomed: dict[int, float] = {}
        """Connections that have said hello and got no welcome yet, and since when."""
        self._end_at: float | None = None
        """When what is left of a failed incarnation is ended: monotonic seconds."""
        self.num_attached = 0

    @property
    def until(self) -> float | None:
        """When `tend` and `welcome` want to be called at the latest: monotonic seconds."""
        times = [since + WELCOME_PATIENCE for since in self._unwelcomed.values()]
        if self._end_at is not None:
            times.append(self._end_at)
        if self._watches_heartbeats:
            times += [w.heard_at + self._settings.heartbeat_timeout for w in self._node.workers.values()]
        return min(times, default=None)

    @property
    def _watches_heartbeats(self) -> bool:
        return self._node.ever_in_a_generation and not self._node.failed and not self._node.gone

    def begin(self, num_workers: int) -> None:
        """A new incarnation of this many workers."""
        self.end_workers("the workers are started anew")
        self._node.begin(num_workers)
        self._unwelcomed.clear()
        self._end_at, self.num_attached = None, 0
        name = self._node.place.node
        self._report(
            NodeJoined(
                at=self._clock.wall(),
                source=name,
                node=name,
                incarnation=self._node.incarnation,
                num_workers=num_workers,
            )
        )

    # --- what comes from the workers ---------------------------------------------------------------------------------

    def hear(self, connection: int, message: messages.Message) -> None:
        now = self._clock.monotonic()
        worker = self._node.by_connection(connection)
        if isinstance(message, messages.Hello):
            self._attach(connection, message, now)
        elif worker is not None:  # else of an earlier incarnation
            self._node.said(worker, message, now)
            if isinstance(message, messages.Dying):
                self._end_at = now + RAISING_GRACE

    def _attach(self, connection: int, hello: messages.Hello, now: float) -> None:
        if hello.version != messages.PROTOCOL_VERSION:
            problem = (
                f"the worker speaks protocol {hello.version}, the agent {messages.PROTOCOL_VERSION}: "
                "are two versions of dtf-lightning installed on this node?"
            )
        elif self._node.incarnation == 0:
            problem = "the agent has started no workers yet"
        else:
            worker = LocalWorker(connection=connection, local_rank=hello.local_rank, pid=hello.pid, heard_at=now)
            problem = self._node.attach(worker)
        if problem:
            log.error("%s: worker refused: %s", self._node.place.node, problem)
            self._server.send(connection, messages.Refused(reason=problem))
            return
        self.num_attached += 1
        self._unwelcomed[connection] = now

    def gone(self, connection: int, cause: str) -> None:
        """A worker's socket is closed, or its process has ended."""
        worker = self._node.by_connection(connection)
        self._unwelcomed.pop(connection, None)
        if worker is None:
            return
        first = not self._node.failed
        failed = self._node.lost(worker, cause)
        if failed or self._node.failed:
            at = self._clock.monotonic() + SIBLING_GRACE
            self._end_at = at if self._end_at is None else min(at, self._end_at)
        if failed and first:
            name = self._node.place.node
            self._report(
                WorkerLost(
                    at=self._clock.wall(),
                    source=name,
                    node=name,
                    local_rank=worker.local_rank,
                    reason=self._node.failed,
                )
            )

    # --- what the workers get ----------------------------------------------------------------------------------------

    def tell(self, orders: Orders) -> None:
        for worker, message in orders:
            self._server.send(worker.connection, message)

    def welcome(self, view: RunView, instance: str) -> None:
        """Greet those who wait for it, once this node's place is known."""
        me, run = view.nodes.get(self._node.place.node), view.run
        listed = me is not None and me.incarnation == self._node.incarnation
        known = listed and run is not None and run.instance == instance
        now = self._clock.monotonic()
        for connection, since in list(self._unwelcomed.items()):
            worker = self._node.by_connection(connection)
            if worker is None:
                del self._unwelcomed[connection]
            elif known or now >= since + WELCOME_PATIENCE:
                del self._unwelcomed[connection]
                self._server.send(connection, self._welcome_message(view, worker, me if known else None))

    def _welcome_message(self, view: RunView, worker: LocalWorker, me: NodeRecord | None) -> messages.Welcome:
        generation, place = view.generation, self._node.place
        earlier = [r for r in view.nodes.values() if me is None or r.order < me.order]
        first = me is not None and generation is None and not earlier
        num_before = generation.world_size if generation is not None else sum(r.num_workers for r in earlier)
        offset = 0 if first else max(1, num_before)
        return messages.Welcome(
            run_id=view.keys.run_id,
            node=place.node,
            joiner=generation is not None,
            rank=offset + worker.local_rank,
            world_size=offset + self._node.num_workers,
            store_host=place.host,
            store_port=place.store_port,
            incarnation=self._node.incarnation,
            num_local_workers=self._node.num_workers,
            heartbeat_interval=self._settings.heartbeat_interval,
            rescale_timeout=self._settings.rescale_timeout,
        )

    # --- ends --------------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """End those who are frozen, and those who are left of a failed incarnation."""
        now = self._clock.monotonic()
        if self._watches_heartbeats:
            timeout = self._settings.heartbeat_timeout
            frozen = [w for w in self._node.workers.values() if now - w.heard_at >= timeout]
            if frozen:
                self._node.fail(f"worker {frozen[0].local_rank} is frozen: nothing heard from it for {timeout:g} s")
                self._end_at = now
        if self._node.failed and self._node.workers and self._end_at is None:
            self._end_at = now + SIBLING_GRACE
        if self._end_at is not None and self._end_at <= now:
            self._end_at = None
            if self._node.failed:
                self.end_workers(self._node.failed)

    def let_raise(self) -> None:
        """What the workers were just told makes them raise: give them the time."""
        self._end_at = self._clock.monotonic() + RAISING_GRACE

    def end_workers(self, reason: str) -> None:
        """SIGKILL all that live; their ends come in as events."""
        for worker in self._node.workers.values():
            log.info("%s: ends worker %d: %s", self._node.place.node, worker.local_rank, reason)
            self._server.end(worker.connection, worker.pid)
