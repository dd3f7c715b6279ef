"""One node's agent in restart mode: torchelastic starts the workers anew for every round, and they know nothing of us.

The same parts as in live mode (session, mesh, peers), the same shape: a loop that owns all state, fed by threads that
only report. What differs: no worker speaks, so the node's word is its agent's alone, and rounds are decided by every
agent alike (`elastic/rules/rounds.py`) instead of by a leader.

    num_nodes_waiting > 0 --> torchelastic stops the workers --> next_rendezvous: record.ready_after = round
    --> all living members ready: one publishes `generation` --> ranks from the members' records --> workers start
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.agent.etcd_session import Session
from dtf_lightning.elastic.agent.inbox import (
    CloseAsked,
    LeaveAsked,
    PeerAnswered,
    PeerDead,
    StoreChanged,
    StoreSnapshot,
    Write,
    WriteDone,
    WriteOutcome,
)
from dtf_lightning.elastic.agent.mesh import Mesh
from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.agent.restart.console import RoundConsole
from dtf_lightning.elastic.agent.restart.inbox import (
    RestartEvent,
    RoundAsked,
    WorkerFailed,
    WorkersFinished,
    WorkersStarting,
)
from dtf_lightning.elastic.agent.restart.local_workers import LocalWorkers
from dtf_lightning.elastic.agent.restart.round_records import RoundRecords
from dtf_lightning.elastic.agent.restart.transactions import RESTART, RestartKeys
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.rules.rounds import Arrivals, RoundStep, plan_round, why_let_in, why_stop
from dtf_lightning.elastic.run.keys import NodeDeleted, RunKeys, RunPhase, RunView
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.errors import DtfError, RunAborted, RunRefused
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog

log = logging.getLogger(__name__)

TURN = 0.3
"""Seconds after which the next in line publishes a round that the first has not."""
RETRY_PAUSE = 0.1
CLOSE_TIMEOUT = 15.0


class RestartAgent:
    """A node's presence in a run in restart mode. The caller closes `store`, after `close`."""

    def __init__(
        self,
        store: Store,
        settings: AgentSettings,
        run_id: str,
        *,
        node: str,
        host: str,
        script: str = "",
        clock: Clock | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        self.node_id = node
        self._settings = settings
        self._clock = clock or SystemClock()
        self._elastic = settings.elastic
        self._keys = RunKeys(run_id)
        self._event_log = event_log
        self._console = RoundConsole(node, self._clock, event_log)
        self._inbox: queue.SimpleQueue[RestartEvent] = queue.SimpleQueue()  # reentrant: signal handlers put into it
        push = self._inbox.put
        self._view = RunView(self._keys)
        self._run_keys = RestartKeys(self._view, node, settings.elastic, script)
        self._mesh = Mesh(node, push, host=host) if settings.mesh else None
        self._peers = Peers(node, self._keys, self._mesh, self._clock)
        self._records = RoundRecords(self._view, self._peers, node)
        self._session = Session(store, self._keys, node=node, lease_ttl=settings.lease_ttl, push=push)
        self.workers = LocalWorkers(node, lambda pid, local_rank, cause: push(WorkerFailed(pid, local_rank, cause)))
        mesh_port = self._mesh.port if self._mesh is not None else 0
        self._record = NodeRecord(node=node, host=host, num_workers=1, mesh_port=mesh_port)
        self._written: NodeRecord | None = None
        self._asked: RoundAsked | None = None
        self._instance = ""
        self._entered: Generation | None = None
        """The round that this node's workers were started for."""
        self._arrivals = Arrivals()
        self._in_flight: Write | None = None
        self._retry_at = 0.0
        self._until: float | None = None
        self._kill_at: float | None = None
        self._grace = settings.grace_period
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-agent")
        self._closed = False
        # Between the loop and torchelastic's main thread.
        self._changed = threading.Condition()
        self._stop_reason = ""
        self._exit: Callable[[], BaseException] | None = None

    @property
    def _number(self) -> int:
        return self._entered.number if self._entered is not None else 0

    # --- called by torchelastic's main thread and by signal handlers -------------------------------------------------

    def start(self) -> None:
        if self._mesh is not None:
            self._mesh.start()
        self.workers.start()
        self._session.start()
        self._thread.start()

    def next_round(self, store_port: int) -> Generation:
        """Wait for a round with this node in it; its workers have stopped.

        Raises `SystemExit` (the run is over, or this node leaves), `RunRefused`, `RunAborted`, `DtfError` (our bug).
        """
        asked = RoundAsked(Future(), store_port)
        self._inbox.put(asked)
        return asked.reply.result()

    def workers_starting(self, num_workers: int) -> None:
        """The workers of the round that was handed out last are about to be started."""
        self.workers.expect(num_workers)
        self._inbox.put(WorkersStarting(num_workers))

    def workers_of(self, generation: Generation) -> list[int]:
        """The number of workers of each member, in order, once all have said it.

        If the round breaks before, what is known so far: torchelastic's next question stops its workers.
        """
        records, num_members = self._records, len(generation.members)
        with self._changed:
            self._changed.wait_for(
                lambda: self._stop_reason or self._exit or len(records.num_workers(generation)) == num_members
            )
            known = records.num_workers(generation)
        return [known.get(member.node, member.num_workers) for member in generation.members]

    def finished(self, timeout: float) -> bool:
        """All workers of this node ended well: wait for the other members. Whether they ended in time."""
        self._inbox.put(WorkersFinished())
        with self._changed:
            return self._changed.wait_for(lambda: self._exit is not None or self._others_ended(), timeout)

    def _others_ended(self) -> bool:
        view = self._records.round_view()
        if view.current.number != self._number or self._record.finished != self._number:
            return view.current.number > self._number
        living = view.living
        return all(member.node not in living or view.has_finished(member.node) for member in view.current.members)

    def num_waiting(self) -> int:
        """1 if the workers have to be started anew, having stopped them. Raises like `next_round`, when it is time to go."""
        with self._changed:
            reason, exit_reason = self._stop_reason, self._exit
        if not reason and exit_reason is None:
            return 0
        # Here and not in the loop: a worker that torchelastic sees ended before it asks is a failure to it.
        self.workers.end(self._settings.stop_grace if exit_reason is None else self._grace)
        if exit_reason is not None:
            raise exit_reason()
        return 1

    def leave(self, reason: str, within: float | None = None) -> None:
        """Leave: the others go on without this node. Safe in a signal handler."""
        self._inbox.put(LeaveAsked(reason, within))

    @property
    def exit_reason(self) -> bool:
        """Whether this node goes."""
        return self._exit is not None

    def close(self) -> None:
        """Take this node's keys back and end all threads. The workers have ended. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._inbox.put(CloseAsked())
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT)
        self._session.close(self._last_writes())
        self.workers.close()
        if self._mesh is not None:
            self._mesh.close()  # after the keys: a peer that sees the link close finds nothing to evict
        if self._event_log is not None:
            self._event_log.close()

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
                with self._changed:
                    if event is not None:
                        self._handle(event)
                    self._react()
                    self._changed.notify_all()
        except Exception as error:  # our bug: nothing here can be trusted any more, so this node stops, with the stack
            log.exception("%s: the agent's loop broke", self.node_id)
            text = f"the agent's loop broke: {error!r}"
            with self._changed:
                self._part(lambda: DtfError(text))
                self._changed.notify_all()

    def _time_to_wait(self) -> float | None:
        times = [at for at in (self._until, self._peers.until) if at is not None]
        return max(0.0, min(times) - self._clock.monotonic()) if times else None

    def _handle(self, event: RestartEvent) -> None:
        match event:
            case StoreSnapshot(result=result):
                self._follow(self._view.reset(result))
            case StoreChanged(events=events):
                self._follow(self._view.apply(events))
            case WriteDone(write=write, outcome=outcome):
                if write is self._in_flight:
                    self._in_flight = None
                    self._retry_at = self._clock.monotonic() + (0.0 if outcome is WriteOutcome.APPLIED else RETRY_PAUSE)
            case PeerDead(node=node, cause=cause):
                if self._peers.died(node, cause) is not None or node in self._view.nodes:
                    self._gone(node, cause)
            case PeerAnswered(node=node):
                self._peers.answered(node)
            case RoundAsked():
                self._ask(event)
            case WorkersStarting(num_workers=num_workers):
                self._started(num_workers)
            case WorkerFailed(pid=pid, cause=cause):
                self._failed(f"worker process {pid}: {cause}")
            case WorkersFinished():
                self._record = replace(self._record, finished=self._number, state=WorkerState.SYNCING)
            case LeaveAsked(reason=reason, within=within):
                self._grace = self._grace if within is None else min(self._grace, within)
                self._record = replace(self._record, leaving=True, detail=self._record.detail or reason)
            case _:
                raise AssertionError(f"nobody sends this in restart mode: {event!r}")

    def _react(self) -> None:
        """Bring everything in line with what is known now."""
        self._until = None
        self._kill_if_late()
        for node, cause in self._peers.overdue():
            self._gone(node, cause)
        for write in self._peers.evictions(self._view):
            self._session.submit(write)
        self._peers.follow(self._view)
        if not self._view.revision:
            return
        if self._view.drain_asked(self.node_id) and not self._record.leaving:
            self._record = replace(self._record, leaving=True, detail="drained by an operator")
        self._follow_run()
        if self._record.leaving:
            self._part(lambda: SystemExit(0))
        self._follow_round()
        self._publish_record()
        if self._asked is not None and self._exit is not None:
            self._answer(self._exit())
        elif self._asked is not None and self._written is not None and self.node_id in self._view.nodes:
            self._advance()

    # --- what the keys say -------------------------------------------------------------------------------------------

    def _follow(self, changes: list[NodeRecord | NodeDeleted]) -> None:
        for node, cause in self._records.follow(changes):
            self._gone(node, cause)
        if self.node_id not in self._view.nodes:
            self._written = None  # the lease went, or a peer thought us dead: register again

    def _gone(self, node: str, cause: str) -> None:
        if node in {member.node for member in self._records.current.members}:
            self._console.gone(node, cause)

    def _follow_run(self) -> None:
        """Take part in the run's instance, begin it if nobody has, go home when it is over."""
        run, asked = self._view.run, self._asked is not None
        if run is not None and run.instance == self._instance:
            if run.phase is RunPhase.ABORTED:
                self._part(lambda: RunAborted(f"run {self._keys.run_id!r}: {run.reason}"))
            elif run.phase is RunPhase.FINISHED and asked:
                log.info("run %r is finished: %s", self._keys.run_id, run.reason)
                self._part(lambda: SystemExit(0))
        elif run is not None and self._instance and asked and self._entered is None:
            self._part(lambda: SystemExit(0))  # it waited for a place in a run that is over
        elif run is not None and (refusal := self._run_keys.refusal(run)):
            self._part(lambda: RunRefused(refusal))
        elif run is not None and run.phase is RunPhase.RUNNING and run.mode == RESTART:
            self._instance = run.instance
        elif asked and self._exit is None:
            self._submit(self._run_keys.begin(self._clock.wall()))

    # --- rounds ------------------------------------------------------------------------------------------------------

    def _follow_round(self) -> None:
        """See whether this node's workers may go on, and how it stands for the next round."""
        current = self._records.current
        if self._asked is not None and self._is_new(current) and self.node_id in {m.node for m in current.members}:
            self._enter(current)
            return
        if self._asked is not None:
            ready = replace(self._record, ready_after=current.number, store_port=self._asked.store_port, finished=0)
            self._record = replace(ready, state=WorkerState.SYNCING)
            return
        entered = self._entered
        if entered is None or self._record.finished == entered.number or self._stop_reason:
            return
        view = self._records.round_view()
        if self._record.suspect == entered.number:
            return  # torchelastic is about to see it, and stops the others itself
        if current.instance not in ("", entered.instance):
            reason = "the run was begun anew without this node"
        elif current.number > entered.number:
            reason = f"round {current.number} was formed without this node ({current.reason})"
        elif current.number < entered.number:
            reason = "the run's keys were deleted"
        else:
            reason = why_stop(view)
        if not reason:
            reason, look_again = why_let_in(self._elastic, view, self._arrivals, self._clock.monotonic())
            self._wake_at(look_again)
        if reason:
            log.info("%s: stops its workers: %s", self.node_id, reason)
            self._stop_reason = reason
            self.workers.freeze()

    def _advance(self) -> None:
        """This node waits: take its place in a round, or help to form one."""
        current, now = self._records.current, self._clock.monotonic()
        assert self._asked is not None
        if not self._instance or current.instance not in ("", self._instance):
            return
        view = self._records.round_view()
        ready = tuple(sorted(record.node for record in view.records if view.is_ready(record)))
        self._arrivals.note(ready, now)
        quiet_since = self._arrivals.quiet_since
        decision = plan_round(self._elastic, view, quiet_since=quiet_since, now=now, wall=self._clock.wall())
        if decision.step is RoundStep.WAIT:
            self._wake_at(self._console.waits(decision))
            self._wake_at(decision.until)
            return
        order = [record.node for record in decision.members]
        turn = order.index(self.node_id) if self.node_id in order else 0
        if now < quiet_since + TURN * turn:
            self._wake_at(quiet_since + TURN * turn)
            return
        if decision.step is RoundStep.ABORT:
            self._submit(self._run_keys.end(RunPhase.ABORTED, decision.reason))
        else:
            self._submit(self._run_keys.form(view, decision, instance=self._instance, wall=self._clock.wall()))

    def _is_new(self, generation: Generation) -> bool:
        last = self._entered
        return last is None or generation.instance != last.instance or generation.number > last.number

    def _enter(self, generation: Generation) -> None:
        assert self._asked is not None
        rank = [member.node for member in generation.members].index(self.node_id)
        self._console.entered(generation, rank)
        self._entered, self._stop_reason, self._kill_at, self._arrivals = generation, "", None, Arrivals()
        self._record = replace(self._record, ready_after=None, suspect=0, detail="", state=WorkerState.ACTIVE)
        asked, self._asked = self._asked, None
        asked.reply.set_result(generation)

    def _answer(self, exit_reason: BaseException) -> None:
        assert self._asked is not None
        asked, self._asked = self._asked, None
        asked.reply.set_exception(exit_reason)

    def _started(self, num_workers: int) -> None:
        self._record = replace(self._record, num_workers=num_workers, generation=self._number)
        self._console.started(self._number, num_workers)

    def _ask(self, asked: RoundAsked) -> None:
        self._asked, self._kill_at = asked, None
        if self._entered is not None and not self._stop_reason and not self._record.suspect:
            # torchelastic saw it first
            self._record = replace(self._record, suspect=self._number, detail="its workers failed")

    def _failed(self, cause: str) -> None:
        if self._asked is not None or self._record.finished == self._number:
            return
        # torchelastic waits 30 s for siblings that ignore its SIGTERM, and for ever for frozen ones.
        self._kill_at = self._clock.monotonic() + self._settings.stop_grace
        self.workers.terminate()
        if not self._stop_reason and self._exit is None:
            log.info("%s: %s", self.node_id, cause)
            self._record = replace(self._record, suspect=self._number, detail=cause)

    def _kill_if_late(self) -> None:
        if self._kill_at is not None and self._clock.monotonic() >= self._kill_at:
            self._kill_at = None
            self.workers.kill()
        self._wake_at(self._kill_at)

    # --- what is written ---------------------------------------------------------------------------------------------

    def _publish_record(self) -> None:
        if self._asked is None and not self._number:
            return
        if self._record != self._written:
            self._written = self._record
            self._session.write_record(self._record)

    def _submit(self, write: Write) -> None:
        now = self._clock.monotonic()
        if self._in_flight is not None:
            return  # its `WriteDone` wakes the loop
        if now < self._retry_at:
            self._wake_at(self._retry_at)
            return
        self._in_flight = write
        self._session.submit(write)

    def _last_writes(self) -> tuple[Write, ...]:
        run = self._view.run
        if run is None or run.phase is not RunPhase.RUNNING or run.instance != self._instance or not self._number:
            return ()
        return self._run_keys.last(self._records.round_view(), self._record, number=self._number)

    # --- small things ------------------------------------------------------------------------------------------------

    def _part(self, exit_reason: Callable[[], BaseException]) -> None:
        if self._exit is None:
            self._exit = exit_reason
            if self._number and self._asked is None:
                self.workers.freeze()

    def _wake_at(self, at: float | None) -> None:
        if at is not None:
            self._until = at if self._until is None else min(self._until, at)
