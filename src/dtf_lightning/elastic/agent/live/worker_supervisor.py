"""`WorkerSupervisor` greets a node's workers, hears them, sends them orders, and ends the frozen and the left over.

Rules that this file guards:

* no worker outlives its incarnation: when one fails its siblings end too, with a delay in which torchelastic sees the
  one whose fault it was;
* a worker from which nothing is heard for `heartbeat_timeout` while it is in a generation is ended;
* a worker is greeted when this node's place is known (`place.py`), or after a patience as a newcomer of unknown rank.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.live.incarnation import Incarnation, LocalWorker
from dtf_lightning.elastic.agent.live.place import SetupPlace, setup_place
from dtf_lightning.elastic.agent.live.worker_group import Orders, WorkerGroup
from dtf_lightning.elastic.agent.live.worker_server import WorkerServer
from dtf_lightning.elastic.agent.one_write import OneWrite
from dtf_lightning.elastic.events import NodeJoined, WorkerLost
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.link.worker_link import CONNECT_TIMEOUT
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunView
from dtf_lightning.elastic.run.transactions import claim_rank_zero
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

SIBLING_GRACE = 0.5
"""Seconds from a worker's end to its siblings': torchelastic looks every 0.1 s and blames whom it sees ended."""
RAISING_GRACE = 15.0
"""Seconds that a worker which is to raise (refused, aborted, dying by its own error) has to tear down."""
WELCOME_PATIENCE = 5.0
"""Seconds that a worker waits until its node's place in set-up is known."""
MAX_WELCOME_PATIENCE = CONNECT_TIMEOUT - 5.0
"""Seconds after which a worker is greeted in any case: it gives up after `CONNECT_TIMEOUT` by itself."""


class WorkerSupervisor:
    """The part of an agent between its node's state and the sockets of its workers. Used by the loop's thread only."""

    def __init__(
        self,
        group: WorkerGroup,
        server: WorkerServer,
        settings: ElasticSettings,
        clock: Clock,
        report: Callable[[Event], None],
        *,
        comeback: float,
    ) -> None:
        self._group = group
        self._server = server
        self._settings = settings
        self._clock = clock
        self._report = report
        self._unwelcomed: dict[int, float] = {}
        """Connections that have said hello and got no welcome yet, and since when (monotonic seconds)."""
        self._comeback = min(comeback + WELCOME_PATIENCE, MAX_WELCOME_PATIENCE)
        """Seconds that a worker waits for its welcome while it is unknown whether a run that has trained goes on."""
        self._patience = WELCOME_PATIENCE
        self._claim = OneWrite(clock, refused=0.05, unanswered=0.5)
        self._end_at: float | None = None
        """The time (monotonic seconds) at which the rest of a failed incarnation is ended."""
        self.num_attached = 0

    @property
    def _workers(self) -> Incarnation:
        return self._group.incarnation

    @property
    def deadline(self) -> Deadline:
        """The time at which `tend` and `welcome` must be called at the latest."""
        deadline = Deadline(self._end_at, *(since + self._patience for since in self._unwelcomed.values()))
        if self._unwelcomed:
            deadline.bring_forward(self._claim.deadline.at)
        if self._watches_heartbeats:
            timeout = self._settings.heartbeat_timeout
            deadline.bring_forward(*(worker.heard_at + timeout for worker in self._workers.workers.values()))
        return deadline

    @property
    def _watches_heartbeats(self) -> bool:
        return self._workers.ever_in_a_generation and not self._workers.over

    def begin(self, num_workers: int) -> None:
        """Replace the workers by a new incarnation of `num_workers`."""
        self.end_workers("the workers are started anew")
        self._group.begin(num_workers)
        self._unwelcomed.clear()
        self._end_at, self.num_attached = None, 0
        name = self._group.address.node
        self._report(
            NodeJoined(
                at=self._clock.wall(),
                source=name,
                node=name,
                incarnation=self._workers.number,
                num_workers=num_workers,
            )
        )

    # --- what comes from the workers ---------------------------------------------------------------------------------

    def hear(self, connection: int, message: messages.Message) -> None:
        now = self._clock.monotonic()
        worker = self._workers.by_connection(connection)
        if isinstance(message, messages.Hello):
            self._attach(connection, message, now)
        elif worker is not None:  # else of an earlier incarnation
            self._group.said(worker, message, now)
            if isinstance(message, messages.Dying):
                self._end_at = now + RAISING_GRACE

    def _attach(self, connection: int, hello: messages.Hello, now: float) -> None:
        if hello.version != messages.PROTOCOL_VERSION:
            problem = (
                f"the worker speaks protocol {hello.version}, the agent {messages.PROTOCOL_VERSION}: "
                "are two versions of dtf-lightning installed on this node?"
            )
        elif self._workers.number == 0:
            problem = "the agent has started no workers yet"
        else:
            worker = LocalWorker(connection=connection, local_rank=hello.local_rank, pid=hello.pid, heard_at=now)
            problem = self._workers.attach(worker)
        if problem:
            log.error("%s: worker refused: %s", self._group.address.node, problem)
            self._server.send(connection, messages.Refused(reason=problem))
            return
        self.num_attached += 1
        self._unwelcomed[connection] = now

    def ending(self, connection: int) -> None:
        """Take in that a worker's process is ending: the others need not wait until the kernel has freed its memory."""
        worker = self._workers.by_connection(connection)
        if worker is None or not self._workers.would_fail(worker):
            return
        first = not self._workers.failed
        self._group.fail(f"worker {worker.local_rank} (pid {worker.pid}) is gone: its process ended")
        # Its siblings end some time after it has ended: see `SIBLING_GRACE`.
        at = self._clock.monotonic() + RAISING_GRACE
        self._end_at = at if self._end_at is None else min(at, self._end_at)
        if first:
            self._report_lost(worker)

    def gone(self, connection: int, cause: str) -> None:
        """Take in that a worker's socket is closed, or that its process has ended."""
        worker = self._workers.by_connection(connection)
        self._unwelcomed.pop(connection, None)
        if worker is None:
            return
        first = not self._workers.failed
        failed = self._group.lost(worker, cause)
        if failed or self._workers.failed:
            at = self._clock.monotonic() + SIBLING_GRACE
            self._end_at = at if self._end_at is None else min(at, self._end_at)
        if failed and first:
            self._report_lost(worker)

    def _report_lost(self, worker: LocalWorker) -> None:
        name, reason = self._group.address.node, self._workers.failed
        self._report(
            WorkerLost(at=self._clock.wall(), source=name, node=name, local_rank=worker.local_rank, reason=reason)
        )

    # --- what the workers get ----------------------------------------------------------------------------------------

    def tell(self, orders: Orders) -> None:
        for worker, message in orders:
            self._server.send(worker.connection, message)

    def welcome(self, view: RunView, instance: str) -> Iterator[Write]:
        """Greet waiting workers once this node's place is known; yield the claim of rank zero if it is to be made."""
        if not self._unwelcomed:
            return
        me, run = view.nodes.get(self._group.address.node), view.run
        listed = me is not None and me.incarnation == self._workers.number
        known = listed and run is not None and run.instance == instance
        now = self._clock.monotonic()
        place = setup_place(view, me) if known and me is not None else None
        self._patience = self._comeback if place is SetupPlace.UNDECIDED else WELCOME_PATIENCE
        decided = place in (SetupPlace.RANK_ZERO, SetupPlace.OTHER)
        self._workers.rank_zero |= place is SetupPlace.RANK_ZERO
        if place is SetupPlace.TO_CLAIM and me is not None:
            yield from self._claim.attempt(claim_rank_zero(view, me.member_id))
        for connection, since in list(self._unwelcomed.items()):
            worker = self._workers.by_connection(connection)
            if worker is None:
                del self._unwelcomed[connection]
            elif decided or now >= since + self._patience:
                del self._unwelcomed[connection]
                self._server.send(connection, self._welcome_message(view, worker, me if known else None))

    def written(self, write: Write, outcome: WriteOutcome) -> None:
        """Take in the outcome of a write, whichever part of the agent had asked for it."""
        self._claim.written(write, outcome)

    def _welcome_message(self, view: RunView, worker: LocalWorker, me: NodeRecord | None) -> messages.Welcome:
        generation, address = view.generation, self._group.address
        earlier = [r for r in view.nodes.values() if me is None or r.order < me.order]
        first = self._workers.rank_zero
        num_before = generation.world_size if generation is not None else sum(r.num_workers for r in earlier)
        offset = 0 if first else max(1, num_before)
        return messages.Welcome(
            run_id=view.keys.run_id,
            node=address.node,
            joiner=generation is not None,
            rank=offset + worker.local_rank,
            world_size=offset + self._workers.num_workers,
            store_host=address.host,
            store_port=address.store_port,
            incarnation=self._workers.number,
            num_local_workers=self._workers.num_workers,
            heartbeat_interval=self._settings.heartbeat_interval,
            rescale_timeout=self._settings.rescale_timeout,
        )

    # --- ends --------------------------------------------------------------------------------------------------------

    def tend(self) -> None:
        """End the workers that are frozen, and those that are left of a failed incarnation."""
        now = self._clock.monotonic()
        if self._watches_heartbeats:
            timeout = self._settings.heartbeat_timeout
            frozen = [w for w in self._workers.workers.values() if now - w.heard_at >= timeout]
            if frozen:
                self._group.fail(f"worker {frozen[0].local_rank} is frozen: nothing heard from it for {timeout:g} s")
                self._end_at = now
        if self._workers.failed and self._workers.workers and self._end_at is None:
            self._end_at = now + SIBLING_GRACE
        if self._end_at is not None and self._end_at <= now:
            self._end_at = None
            if self._workers.failed:
                self.end_workers(self._workers.failed)

    def let_raise(self) -> None:
        """Give the workers the time to raise, because what they were just told makes them do so."""
        self._end_at = self._clock.monotonic() + RAISING_GRACE

    def end_workers(self, reason: str) -> None:
        """Kill all workers that live with SIGKILL; their ends come in as events."""
        for worker in self._workers.workers.values():
            log.info("%s: ends worker %d: %s", self._group.address.node, worker.local_rank, reason)
            self._server.end(worker.connection, worker.pid)
