"""One node's agent: a loop that owns all state, fed by threads that only report what they see.

    etcd watch --+                            +--> publisher (etcd writes)
    workers   ---+--> inbox --> loop thread --+--> workers' sockets
    mesh      ---+              (this file)   +--> verdict for torchelastic's main thread
    main      ---+

After every event the loop looks at everything anew (`_react`) and brings workers, record, election and mesh in line with
it. Nothing depends on having seen every intermediate state: a node may have been cut off for a while.

Every wait is finite, and which must exceed which: `lease_ttl` > the mesh's `PROBE_TIMEOUT`; `grace_period` > a step and
a rescale; `heartbeat_timeout` > three heartbeats.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future
from enum import Enum

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.agent.etcd_session import Session
from dtf_lightning.elastic.agent.inbox import (
    CloseAsked,
    InboxEvent,
    IncarnationAsked,
    LeaveAsked,
    PeerAnswered,
    PeerDead,
    StoreChanged,
    StoreSnapshot,
    WorkerGone,
    WorkerSaid,
    WorkersStarting,
    WorkersToEnd,
    WriteDone,
)
from dtf_lightning.elastic.agent.live.admission import Admission
from dtf_lightning.elastic.agent.live.closing_writes import last_writes
from dtf_lightning.elastic.agent.live.console import Narrator
from dtf_lightning.elastic.agent.live.leadership import Leadership, others_can_lead
from dtf_lightning.elastic.agent.live.local_node import LocalNode, Place
from dtf_lightning.elastic.agent.live.recent_events import Chronicle
from dtf_lightning.elastic.agent.live.worker_server import WorkerServer
from dtf_lightning.elastic.agent.live.worker_supervisor import RAISING_GRACE, Caretaker
from dtf_lightning.elastic.agent.mesh import Mesh
from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.events import NodeGoneEvent
from dtf_lightning.elastic.link.messages import Happened, Ready
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import NodeDeleted, RunKeys, RunPhase, RunView
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.errors import DtfError, RunAborted, RunRefused
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog, events_path
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

GOING_GRACE = 3.0
"""Seconds that workers outside of any generation get to end by themselves when their node leaves."""
START_TIMEOUT = 30.0
CLOSE_TIMEOUT = 15.0
"""Seconds; more than the loop and the session need for what they are at."""
NEVER = float("inf")


class Parting(Enum):
    """Why torchelastic's main thread must not go on."""

    LEFT = "left"  # on SIGTERM, Ctrl-C or drain, or the run is finished: exit with 0
    OUT_OF_TIME = "out of time"  # the grace period is over
    REFUSED = "refused"
    ABORTED = "aborted"
    BROKEN = "broken"  # a bug of ours


class Agent:
    """A node's presence in a run.

    Args:
        store: closed by the caller, after `close`.
        host: where the other nodes reach this one.
        store_port: this agent's TCPStore on `host`, which may host a generation.
        socket_path: where the workers are to connect.
    """

    def __init__(
        self,
        store: Store,
        settings: AgentSettings,
        run_id: str,
        *,
        node: str,
        host: str,
        store_port: int,
        socket_path: str,
        clock: Clock | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        self.node_id = node
        self._settings = settings
        self._clock = clock or SystemClock()
        self._keys = RunKeys(run_id)
        self._event_log = event_log
        self._inbox: queue.SimpleQueue[InboxEvent] = queue.SimpleQueue()  # reentrant: signal handlers put into it
        push = self._inbox.put
        self._view = RunView(self._keys)
        self._mesh = Mesh(node, push, host=host) if settings.mesh else None
        mesh_port = self._mesh.port if self._mesh is not None else 0
        self._node = LocalNode(Place(node=node, host=host, store_port=store_port, mesh_port=mesh_port))
        self._peers = Peers(node, self._keys, self._mesh, self._clock)
        self._leadership = Leadership(node, self._keys, settings, self._clock, self._report)
        self._admission = Admission(settings.elastic, self._clock)
        self._narrator = Narrator(node, self._clock)
        self._chronicle = Chronicle(node, self._keys, self._clock)
        self._session = Session(store, self._keys, node=node, lease_ttl=settings.lease_ttl, push=push)
        self._server = WorkerServer(socket_path, push)
        self._caretaker = Caretaker(self._node, self._server, settings.elastic, self._clock, self._report)
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-agent")
        self._record: NodeRecord | None = None
        self._grace = settings.grace_period
        self._grace_ends: float | None = None
        self._waiting_starts: list[Future[None]] = []
        self._closed = False
        # Read by torchelastic's main thread, written by the loop's.
        self._parting: tuple[Parting, str] | None = None
        self._parting_at = NEVER
        self._started_at: float | None = None

    # --- called by torchelastic's main thread and by signal handlers -------------------------------------------------

    def start(self) -> None:
        self._server.start()
        if self._mesh is not None:
            self._mesh.start()
        self._session.start()
        self._thread.start()

    def await_start(self) -> None:
        """Wait until the workers may be started.

        Raises `SystemExit` (the run is over, or this node leaves), `RunRefused`, `RunAborted`, `DtfError` (our bug).
        """
        reply: Future[None] = Future()
        self._inbox.put(IncarnationAsked(reply))
        try:
            reply.result(START_TIMEOUT)
        except TimeoutError:
            log.warning("%s: etcd does not answer; the workers are started and wait for it", self.node_id)
        if self._parting is not None:
            raise self._as_exception()

    def workers_starting(self, num_workers: int) -> None:
        """torchelastic starts a new incarnation of this many workers."""
        self._started_at = self._clock.monotonic()
        self._inbox.put(WorkersStarting(num_workers))

    def check(self) -> None:
        """To be called now and then while the workers run. Raises like `await_start`, once it is time to go."""
        if self._parting is not None and self._clock.monotonic() >= self._parting_at:
            raise self._as_exception()

    @property
    def parting(self) -> Parting | None:
        """Why this node goes; `None` while it stays."""
        return self._parting[0] if self._parting is not None else None

    @property
    def workers_went_home(self) -> bool:
        """This incarnation left by agreement, or the run is finished: what its workers do now is their own business."""
        return self._node.gone

    @property
    def num_missing(self) -> int:
        """Workers of this incarnation that have not said hello."""
        return max(0, self._node.num_workers - self._caretaker.num_attached)

    @property
    def running_for(self) -> float:
        """Seconds since this incarnation was started; 0 before."""
        return self._clock.monotonic() - self._started_at if self._started_at is not None else 0.0

    def leave(self, reason: str, within: float | None = None) -> None:
        """Leave gracefully: at an agreed boundary, or at once when in no generation. Safe in a signal handler."""
        self._inbox.put(LeaveAsked(reason, within))

    def end_workers(self, reason: str) -> None:
        """SIGKILL this node's workers. Safe in a signal handler."""
        self._inbox.put(WorkersToEnd(reason))

    def close(self) -> None:
        """Take this node's keys back and end all threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(CloseAsked())
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)
        self._session.close(last_writes(self._view, self._node, self._admission.instance))
        self._server.close()
        if self._mesh is not None:
            self._mesh.close()  # after the keys: a peer that sees the link close finds nothing to evict
        if self._event_log is not None:
            self._event_log.close()

    def _as_exception(self) -> BaseException:
        assert self._parting is not None
        parting, reason = self._parting
        match parting:
            case Parting.LEFT:
                return SystemExit(0)
            case Parting.OUT_OF_TIME:
                return SystemExit(1)
            case Parting.REFUSED:
                return RunRefused(reason)
            case Parting.ABORTED:
                return RunAborted(reason)
            case Parting.BROKEN:
                return DtfError(reason)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                try:
                    event = self._inbox.get(timeout=self._time_to_wait())
                except queue.Empty:
                    event = None
                if isinstance(event, CloseAsked):
                    return
                if event is not None:
                    self._handle(event)
                self._react()
        except Exception as error:  # our bug: nothing here can be trusted any more, so this node stops, with the stack
            log.exception("%s: the agent's loop broke", self.node_id)
            self._part(Parting.BROKEN, f"the agent's loop broke: {error!r}", after=0.0)
            self._caretaker.end_workers("the agent's loop broke")

    def _time_to_wait(self) -> float | None:
        grace_ends = self._grace_ends if self._parting is None else None
        parts = (self._leadership, self._peers, self._caretaker, self._admission, self._narrator, self._chronicle)
        times = [at for at in (*(part.until for part in parts), grace_ends) if at is not None]
        return max(0.0, min(times) - self._clock.monotonic()) if times else None

    def _handle(self, event: InboxEvent) -> None:
        match event:
            case StoreSnapshot(result=result):
                self._follow(self._view.reset(result))
            case StoreChanged(events=events):
                self._follow(self._view.apply(events))
            case WriteDone(write=write, outcome=outcome):
                if not self._chronicle.written(write, outcome):
                    self._leadership.written(write, outcome)
            case WorkerSaid(connection=connection, message=message):
                if isinstance(message, Ready) and message.run_dir and self._event_log is not None:
                    self._event_log.open(events_path(message.run_dir, self.node_id))
                if isinstance(message, Happened):
                    self._chronicle.add(message.event)
                self._caretaker.hear(connection, message)
            case WorkerGone(connection=connection, cause=cause):
                self._caretaker.gone(connection, cause)
            case PeerDead(node=node, cause=cause):
                settled = self._peers.died(node, cause)
                if settled is not None:
                    self._node_gone(node, settled)
            case PeerAnswered(node=node):
                self._peers.answered(node)
            case IncarnationAsked(reply=reply):
                self._waiting_starts.append(reply)
            case WorkersStarting(num_workers=num_workers):
                self._caretaker.begin(num_workers)
            case LeaveAsked(reason=reason, within=within):
                self._grace = self._grace if within is None else min(self._grace, within)
                self._node.leaving = self._node.leaving or reason
            case WorkersToEnd(reason=reason):
                self._caretaker.end_workers(reason)
            case _:
                raise AssertionError(f"the loop's end does not come here: {event!r}")

    def _react(self) -> None:
        """Bring everything in line with what is known now."""
        for node, cause in self._peers.overdue():
            self._node_gone(node, cause)
        self._follow_run()
        self._admit()
        self._caretaker.tell(self._node.orders(self._view.generation, self._view.directive))
        self._leave_if_asked()
        self._caretaker.tend()
        self._publish()
        self._caretaker.welcome(self._view, self._admission.instance)
        self._let_workers_start()
        for write in self._leadership.advance(self._view, self._peers, willing=self._willing):
            self._session.submit(write)
        for write in self._peers.evictions(self._view):
            self._session.submit(write)
        self._peers.follow(self._view)
        self._narrator.tell(self._view, self._node)
        for write in self._chronicle.due(listed=self.node_id in self._view.nodes):
            self._session.submit(write)

    # --- what the keys say -------------------------------------------------------------------------------------------

    def _follow(self, changes: list[NodeRecord | NodeDeleted]) -> None:
        for change in changes:
            if isinstance(change, NodeRecord):
                if change.node != self.node_id:
                    self._peers.listed(change)
                self._leadership.node_changed(change)
            elif change.record.node == self.node_id:
                self._record = None  # the lease went, or a peer thought us dead: register again
            else:
                cause = self._peers.unlisted(change.record)
                if cause is not None:
                    self._node_gone(change.record.node, cause)

    def _node_gone(self, node: str, cause: str) -> None:
        if self._leadership.term is not None:
            log.info("%s is gone: %s", node, cause)
            self._report(NodeGoneEvent(at=self._clock.wall(), source=self.node_id, node=node, cause=cause))
        self._leadership.node_gone(node, cause)

    def _follow_run(self) -> None:
        """Take part in the run's instance, go home when it is over, stop when it went on without this node."""
        run, node, admission = self._view.run, self._node, self._admission
        if run is None:
            return
        if run.phase is RunPhase.RUNNING:
            if run.mode != "live" and any(other != self.node_id for other in self._view.nodes):
                reason = f"run {self._keys.run_id!r} is in mode={run.mode}, this node in mode=live"
                self._part(Parting.REFUSED, f"{reason}; give it the same mode, or a --rdzv-id of its own", after=0.0)
            if admission.instance != run.instance:
                if node.ever_in_a_generation and not node.gone:
                    node.fail(f"the run was begun anew without this node (instance {run.instance})")
                admission.instance, node.instance = run.instance, ""
        elif run.instance == admission.instance:
            self._caretaker.tell(node.end_of_run(run))
            if run.phase is RunPhase.FINISHED:
                self._part(Parting.LEFT, run.reason, after=NEVER)  # a script may go on after training
            elif self._part(Parting.ABORTED, f"run {self._keys.run_id!r}: {run.reason}", after=RAISING_GRACE):
                self._caretaker.let_raise()

    def _admit(self) -> None:
        for write in self._admission.advance(self._view, self._node):
            self._session.submit(write)
        self._refuse_if_different()

    def _refuse_if_different(self) -> None:
        refusal = self._admission.refusal
        if refusal and self._part(Parting.REFUSED, refusal, after=RAISING_GRACE):
            log.error("%s: %s", self.node_id, refusal)
            self._caretaker.tell(self._node.refuse(refusal))
            self._caretaker.let_raise()

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _leave_if_asked(self) -> None:
        node = self._node
        if self._view.drain_asked(self.node_id):
            node.leaving = node.leaving or "drained by an operator"
        if self.parting is not None:
            return
        if not node.leaving:
            self._grace_ends = None
            return
        now = self._clock.monotonic()
        if self._grace_ends is None:
            log.info("%s: leaves (%s), within %g s", self.node_id, node.leaving, self._grace)
            self._grace_ends = now + self._grace
        if node.failed or node.gone:
            self._part(Parting.LEFT, node.leaving, after=GOING_GRACE)
        elif node.waits or not node.ever_in_a_generation:
            # Nobody trains with it, so nobody has to stop for it.
            self._caretaker.tell(node.leave_without_leader(f"this node leaves: {node.leaving}"))
            self._part(Parting.LEFT, node.leaving, after=GOING_GRACE)
        elif now >= self._grace_ends:
            reason = f"not gone {self._grace:g} s after it was asked to leave ({node.leaving})"
            log.warning("%s: %s", self.node_id, reason)
            self._part(Parting.OUT_OF_TIME, reason, after=0.0)
            self._caretaker.end_workers(reason)

    def _part(self, parting: Parting, reason: str, *, after: float) -> bool:
        """Have the main thread go, `after` seconds from now if the workers have not ended by then; true if that is new."""
        if self._parting is not None:
            return False
        self._parting_at = self._clock.monotonic() + after
        self._parting = (parting, reason)
        return True

    @property
    def _willing(self) -> bool:
        """Whether this agent should lead."""
        run = self._view.run
        over = run is not None and run.phase is not RunPhase.RUNNING and run.instance == self._admission.instance
        if over or self._node.incarnation == 0 or self.parting in (Parting.REFUSED, Parting.BROKEN):
            return False
        return not self._node.leaving or not others_can_lead(self._view, self.node_id)

    # --- small things ------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        if self._node.incarnation == 0:
            return
        record = self._node.record()
        if record == self._record:
            return
        if record.state is WorkerState.FAILED and (self._record is None or self._record.state is not record.state):
            log.info("%s: %s", record.member_id, record.detail)
        self._record = record
        self._session.write_record(record)

    def _let_workers_start(self) -> None:
        if self._waiting_starts and (self._view.revision or self._parting is not None):
            self._admission.check_settings(self._view)
            self._refuse_if_different()
            for reply in self._waiting_starts:
                reply.set_result(None)
            self._waiting_starts.clear()

    def _report(self, event: Event) -> None:
        self._chronicle.add(event.to_json())
        if self._event_log is not None:
            self._event_log.write(event)
