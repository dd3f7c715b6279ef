"""`AgentLoop` is what the agents of both modes share: a loop that owns all state, fed by threads that only report.

    etcd watch --+                            +--> publisher (etcd writes)
    workers   ---+--> inbox --> loop thread --+--> the node's workers
    mesh      ---+              (this file)   +--> why the main thread must go
    main      ---+

After every event the loop looks at everything anew (`_react`) and brings workers, record and keys in line with it.
Nothing depends on having seen every intermediate state: a node may have been cut off for a while.

Every wait is finite, and which must exceed which: `lease_ttl` > the mesh's `PROBE_TIMEOUT`; `grace_period` > a step and
a rescale; `heartbeat_timeout` > three heartbeats.
"""

from __future__ import annotations

import logging
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from dtf_lightning.clock import Clock, Deadline, SystemClock
from dtf_lightning.elastic.agent.etcd_session import NodeSession
from dtf_lightning.elastic.agent.exit import Exit, ExitReason
from dtf_lightning.elastic.agent.grace import GracePeriod
from dtf_lightning.elastic.agent.inbox import (
    AgentEvent,
    CloseAsked,
    InboxEvent,
    LeaveAsked,
    PeerAnswered,
    PeerDead,
)
from dtf_lightning.elastic.agent.mesh import Mesh
from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.agent.recent_events import RecentEvents
from dtf_lightning.elastic.events import RunEnded
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import NodeDeleted, RunKeys, RunView
from dtf_lightning.elastic.run.transactions import ended_by
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import StoreChanged, StoreSnapshot, Write, WriteDone, WriteOutcome
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

CLOSE_TIMEOUT = 15.0
"""Seconds that `close` waits for the loop; more than the loop and the session need for what they are doing."""
DRAINED = "drained by an operator"


class AgentLoop(ABC):
    """A node's presence in a run. A subclass for each mode has the methods in which the modes differ.

    Args:
        store: closed by the caller, after `close`.
        host: where the other nodes reach this one.
        event_log: closed by `close`.
    """

    def __init__(
        self,
        store: Store,
        settings: AgentSettings,
        run_id: str,
        *,
        node: str,
        host: str,
        clock: Clock | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        self.node_id = node
        self._settings = settings
        self._clock = clock or SystemClock()
        self._event_log = event_log
        self._inbox: queue.SimpleQueue[InboxEvent] = queue.SimpleQueue()  # reentrant: signal handlers put into it
        keys, push = RunKeys(run_id), self._inbox.put
        self._view = RunView(keys)
        self._peers = Peers(node, keys, Mesh(node, push, host=host) if settings.mesh else None, self._clock)
        self._recent_events = RecentEvents(node, keys, self._clock)
        self._session = NodeSession(store, keys, node=node, lease_ttl=settings.lease_ttl, push=push)
        self._grace = GracePeriod(settings.grace_period, self._clock)
        self._published: NodeRecord | None = None
        """The node's record as the session has it; `None` has it written again."""
        self._exit: Exit | None = None
        """The agent's end, once it is known. The loop's thread writes it, torchelastic's main thread reads it."""
        self._changed = threading.Condition()
        """The condition that is held while the loop takes an event in, and notified after each."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-agent")
        self._closed = False

    # --- called by torchelastic's main thread and by signal handlers -------------------------------------------------

    def start(self) -> None:
        """Start all threads; the node becomes visible once its workers are about to start."""
        if self._peers.mesh is not None:
            self._peers.mesh.start()
        self._start_parts()
        self._session.start()
        self._thread.start()

    @property
    def exit_reason(self) -> ExitReason | None:
        """The reason why this node goes; `None` while it stays."""
        return self._exit.reason if self._exit is not None else None

    def leave(self, reason: str, within: float | None = None) -> None:
        """Ask this node to leave gracefully, within `within` seconds where that is known. Safe in a signal handler."""
        self._inbox.put(LeaveAsked(reason, within))

    def close(self) -> None:
        """Take this node's keys back and end all threads. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(CloseAsked())
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)
        self._session.close(self._last_writes())
        self._hear_last_writes()
        self._close_parts()
        if self._peers.mesh is not None:
            self._peers.mesh.close()  # after the keys: a peer that sees the link close finds nothing to evict
        if self._event_log is not None:
            self._event_log.close()

    def _hear_last_writes(self) -> None:
        while not self._inbox.empty():
            event = self._inbox.get()
            if isinstance(event, WriteDone):
                self._note_end_of_run(event)

    # --- what a mode has to have -------------------------------------------------------------------------------------

    @abstractmethod
    def _start_parts(self) -> None:
        """Start the threads that only this mode has."""

    @abstractmethod
    def _close_parts(self) -> None:
        """End the threads that only this mode has. The node's keys are gone by then."""

    @abstractmethod
    def _handle(self, event: AgentEvent) -> None:
        """Take in an event that only this mode has."""

    @abstractmethod
    def _react(self) -> None:
        """Bring all parts of the agent in line with what it knows now."""

    @abstractmethod
    def _deadlines(self) -> Iterable[Deadline]:
        """Yield, for each part, the time at which `_react` must be called at the latest."""

    @abstractmethod
    def _asked_to_leave(self, reason: str) -> None:
        """Take in that this node is to leave, for the reason given."""

    @abstractmethod
    def _node_changed(self, record: NodeRecord) -> None:
        """Take in a new record of a node, which may be this one."""

    @abstractmethod
    def _peer_gone(self, node: str, cause: str) -> None:
        """Take in that a node is out: its key is gone."""

    @abstractmethod
    def _peer_died(self, node: str, cause: str) -> None:
        """Take in that the mesh has proof of a node's death, while its key is still there."""

    @abstractmethod
    def _written(self, write: Write, outcome: WriteOutcome) -> None:
        """Take in the outcome of a write that the mode has asked for."""

    @abstractmethod
    def _last_writes(self) -> Sequence[Write]:
        """Return what is to be written when this node goes, besides the deletion of its keys. The loop has ended."""

    @abstractmethod
    def _broke(self, text: str) -> None:
        """Free the main thread and stop the workers, because the loop has failed."""

    @abstractmethod
    def _turn_away(self, event: AgentEvent) -> None:
        """Answer a question of the main thread that comes after the loop has failed."""

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not isinstance(event := self._next_event(), CloseAsked):
                with self._changed:
                    if event is not None:
                        self._take_in(event)
                    self._look_around()
                    self._changed.notify_all()
        except Exception as error:  # our bug: nothing here can be trusted any more, so this node stops, with the stack
            log.exception("%s: the agent's loop broke", self.node_id)
            text = f"the agent's loop broke: {error!r}"
            with self._changed:
                self._go(ExitReason.BROKEN, text)
                self._broke("the agent's loop broke")
                self._changed.notify_all()
            while not isinstance(event := self._inbox.get(), CloseAsked):
                if isinstance(event, AgentEvent):
                    self._turn_away(event)

    def _next_event(self) -> InboxEvent | None:
        """Return the next event; `None` if a deadline has passed before it."""
        deadline = Deadline(*(part.at for part in self._all_deadlines()))
        try:
            return self._inbox.get(timeout=deadline.left(self._clock.monotonic()))
        except queue.Empty:
            return None

    def _all_deadlines(self) -> Iterable[Deadline]:
        yield from (self._peers.deadline, self._recent_events.deadline, *self._deadlines())
        if self._exit is None:
            yield self._grace.ends

    def _take_in(self, event: InboxEvent) -> None:
        match event:
            case StoreSnapshot(result=result):
                self._follow(self._view.reset(result))
                if self.node_id not in self._view.nodes:
                    self._published = None  # deleted while nobody watched; or still on its way, and then written twice
            case StoreChanged(events=events):
                self._follow(self._view.apply(events))
            case WriteDone(write=write, outcome=outcome):
                self._note_end_of_run(event)
                if not self._recent_events.written(write, outcome):
                    self._written(write, outcome)
            case PeerDead(node=node, cause=cause):
                if self._peers.died(node, cause) is not None:
                    self._peer_gone(node, cause)
                elif node in self._view.nodes:
                    self._peer_died(node, cause)
            case PeerAnswered(node=node):
                self._peers.answered(node)
            case LeaveAsked(reason=reason, within=within):
                self._grace.shorten(within)
                self._asked_to_leave(reason)
            case _:
                self._handle(event)

    def _follow(self, changes: list[NodeRecord | NodeDeleted]) -> None:
        for change in changes:
            record = change if isinstance(change, NodeRecord) else change.record
            mine = record.node == self.node_id
            if isinstance(change, NodeRecord):
                if not mine:
                    self._peers.listed(record)
                self._node_changed(record)
            elif mine:
                self._published = None  # the lease went, or a peer thought us dead: register again
            elif (cause := self._peers.unlisted(record)) is not None:
                self._peer_gone(record.node, cause)

    def _look_around(self) -> None:
        for node, cause in self._peers.overdue():
            self._peer_gone(node, cause)
        if self._view.drain_asked(self.node_id):
            self._asked_to_leave(DRAINED)
        self._react()
        self._submit(self._peers.evictions(self._view))
        self._peers.follow(self._view)
        self._submit(self._recent_events.due(listed=self.node_id in self._view.nodes))

    # --- for the subclasses ------------------------------------------------------------------------------------------

    def _submit(self, writes: Iterable[Write]) -> None:
        for write in writes:
            self._session.submit(write)

    def _publish(self, record: NodeRecord) -> None:
        """Write the node's record if it has changed."""
        if record != self._published:
            self._published = record
            self._session.write_record(record)

    def _report(self, event: Event) -> None:
        """Add an event to the event log, and to what `dtf status` shows."""
        self._recent_events.add(event.to_json())
        if self._event_log is not None:
            self._event_log.write(event)

    def _note_end_of_run(self, done: WriteDone) -> None:
        run = ended_by(self._view.keys, done.write) if done.outcome is WriteOutcome.APPLIED else None
        if run is not None:
            at = self._clock.wall()
            self._report(RunEnded(at=at, source=self.node_id, phase=run.phase.value, reason=run.reason))

    def _begin_to_leave(self, reason: str) -> None:
        """Begin the grace period, unless it runs already."""
        if self._grace.begin():
            log.info("%s: leaves (%s), within %g s", self.node_id, reason, self._grace.seconds)

    def _go(self, reason: ExitReason, text: str, *, after: float = 0.0) -> bool:
        """Let the main thread go, `after` seconds from now unless the workers have ended by then; return whether that
        is new.
        """
        if self._exit is not None:
            return False
        self._exit = Exit(reason=reason, text=text, at=self._clock.monotonic() + after)
        return True
