"""One node's agent in live mode: workers keep their processes over a rescale, and speak to their agent over a socket."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.exit import ExitReason
from dtf_lightning.elastic.agent.inbox import AgentEvent, WorkersStarting
from dtf_lightning.elastic.agent.live.admission import Admission
from dtf_lightning.elastic.agent.live.candidacy import Candidacy, others_can_lead
from dtf_lightning.elastic.agent.live.closing_writes import last_writes
from dtf_lightning.elastic.agent.live.console import Console
from dtf_lightning.elastic.agent.live.inbox import (
    IncarnationAsked,
    WorkerEnding,
    WorkerGone,
    WorkerSaid,
    WorkersToEnd,
)
from dtf_lightning.elastic.agent.live.worker_group import AgentAddress, WorkerGroup
from dtf_lightning.elastic.agent.live.worker_server import WorkerServer
from dtf_lightning.elastic.agent.live.worker_supervisor import RAISING_GRACE, WorkerSupervisor
from dtf_lightning.elastic.agent.loop import AgentLoop
from dtf_lightning.elastic.events import NodeGoneEvent
from dtf_lightning.elastic.link.messages import Dying, Happened, Message, Ready
from dtf_lightning.elastic.rules.planning import stays_for_newcomers
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import LIVE, RunInfo, RunPhase
from dtf_lightning.elastic.run.refusal import may_not_join, other_mode
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog, events_path

log = logging.getLogger(__name__)

GOING_GRACE = 3.0
"""Seconds that workers outside of any generation get to end by themselves when their node leaves."""
START_TIMEOUT = 30.0
NEVER = float("inf")


class LiveAgent(AgentLoop):
    """An agent of a live run: one node's presence in it.

    Args:
        store: closed by the caller, after `close`.
        host: where the other nodes reach this one.
        store_port: this agent's TCPStore on `host`, which may host a generation.
        socket_path: where the workers are to connect.
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
        store_port: int,
        socket_path: str,
        clock: Clock | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        super().__init__(store, settings, run_id, node=node, host=host, clock=clock, event_log=event_log)
        address = AgentAddress(node=node, host=host, store_port=store_port, mesh_port=self._peers.mesh_port)
        self._workers = WorkerGroup(address)
        self._candidacy = Candidacy(node, self._view.keys, settings, self._clock, self._report)
        self._admission = Admission(node, settings.elastic, self._clock)
        self._console = Console(node, self._clock)
        self._server = WorkerServer(socket_path, self._inbox.put)
        self._supervisor = WorkerSupervisor(
            self._workers, self._server, settings.elastic, self._clock, self._report, comeback=settings.comeback
        )
        self._waiting_starts: list[Future[None]] = []
        self._started_at: float | None = None
        """The time at which torchelastic last started the workers: monotonic seconds. For its main thread."""

    # --- called by torchelastic's main thread and by signal handlers -------------------------------------------------

    def await_start(self) -> None:
        """Wait until torchelastic may start the workers.

        Raises `SystemExit` (the run is over, or this node leaves), `RunRefused`, `RunAborted`, `DtfError` (our bug).
        """
        reply: Future[None] = Future()
        self._inbox.put(IncarnationAsked(reply))
        try:
            reply.result(START_TIMEOUT)
        except TimeoutError:
            log.warning("%s: etcd does not answer; the workers are started and wait for it", self.node_id)
        if self._exit is not None:
            raise self._exit.exception()

    def workers_starting(self, num_workers: int) -> None:
        """Note that torchelastic starts a new incarnation of `num_workers` workers."""
        self._started_at = self._clock.monotonic()
        self._inbox.put(WorkersStarting(num_workers))

    def check(self) -> None:
        """Raise what `await_start` raises if it is time to go. torchelastic's monitor calls it while the workers run."""
        if self._exit is not None and self._clock.monotonic() >= self._exit.at:
            raise self._exit.exception()

    @property
    def workers_went_home(self) -> bool:
        """Whether this incarnation has left by agreement, or the run is finished: its ends are no failures."""
        return self._workers.incarnation.gone

    @property
    def num_missing(self) -> int:
        """The number of workers of this incarnation that have not said hello."""
        return max(0, self._workers.incarnation.num_workers - self._supervisor.num_attached)

    @property
    def running_for(self) -> float:
        """The seconds since this incarnation was started; 0 before."""
        return self._clock.monotonic() - self._started_at if self._started_at is not None else 0.0

    def end_workers(self, reason: str) -> None:
        """Kill this node's workers with SIGKILL. Safe in a signal handler."""
        self._inbox.put(WorkersToEnd(reason))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _start_parts(self) -> None:
        self._server.start()

    def _close_parts(self) -> None:
        self._server.close()

    def _deadlines(self) -> Iterator[Deadline]:
        parts = (self._candidacy, self._supervisor, self._admission, self._console)
        yield from (part.deadline for part in parts)
        if self._exit is None and not self._workers.pressed:
            yield Deadline(self._grace.presses_at)

    def _handle(self, event: AgentEvent) -> None:
        match event:
            case WorkerSaid(connection=connection, message=message):
                self._hear(connection, message)
            case WorkerEnding(connection=connection):
                self._supervisor.ending(connection)
            case WorkerGone(connection=connection, cause=cause):
                self._supervisor.gone(connection, cause)
            case IncarnationAsked(reply=reply):
                self._waiting_starts.append(reply)
            case WorkersStarting(num_workers=num_workers):
                self._supervisor.begin(num_workers)
            case WorkersToEnd(reason=reason):
                self._supervisor.end_workers(reason)
            case _:
                raise AssertionError(f"nobody sends this in live mode: {event!r}")

    def _hear(self, connection: int, message: Message) -> None:
        if isinstance(message, Ready) and message.run_dir and self._event_log is not None:
            self._event_log.open(events_path(message.run_dir, self.node_id))
        if isinstance(message, Dying) and message.refused:
            self._admission.refusal = self._admission.refusal or message.error
        if isinstance(message, Happened):
            self._recent_events.add(message.event)
        self._supervisor.hear(connection, message)

    def _react(self) -> None:
        """Bring all parts of the agent in line with what it knows now."""
        self._follow_run()
        self._admit()
        self._supervisor.tell(self._workers.orders(self._view.generation, self._view.directive))
        self._leave_if_asked()
        self._supervisor.tend()
        self._publish_workers()
        self._submit(self._supervisor.welcome(self._view, self._admission.instance))
        self._let_workers_start()
        self._submit(self._candidacy.advance(self._view, self._peers, willing=self._willing))
        self._console.tell(self._view, self._workers)

    def _written(self, write: Write, outcome: WriteOutcome) -> None:
        self._candidacy.written(write, outcome)
        self._supervisor.written(write, outcome)

    def _last_writes(self) -> Sequence[Write]:
        return last_writes(self._view, self._workers, self._admission.instance, resume=self._settings.elastic.resume)

    def _broke(self, text: str) -> None:
        self._answer_starts()
        self._supervisor.end_workers(text)

    def _turn_away(self, event: AgentEvent) -> None:
        if isinstance(event, IncarnationAsked):
            event.reply.set_result(None)

    # --- what the keys say -------------------------------------------------------------------------------------------

    def _node_changed(self, record: NodeRecord) -> None:
        self._candidacy.node_changed(record)

    def _peer_gone(self, node: str, cause: str) -> None:
        if self._candidacy.term is not None:
            log.info("%s is gone: %s", node, cause)
            self._report(NodeGoneEvent(at=self._clock.wall(), source=self.node_id, node=node, cause=cause))
        self._candidacy.node_gone(node, cause)

    def _peer_died(self, node: str, cause: str) -> None:
        """Do nothing: the node is out when its key is gone, which whoever noticed the death is about to delete."""

    def _follow_run(self) -> None:
        """Take part in the run's instance, leave when it is over, and stop if it went on without this node."""
        run, workers, admission = self._view.run, self._workers, self._admission
        if run is None:
            return
        if run.phase is RunPhase.RUNNING:
            if self._view.has_members:
                workers.witnessed = run.instance
            others = self._view.participants(other_than=self.node_id)
            if run.mode != LIVE and others:
                self._go(ExitReason.REFUSED, may_not_join(self._view, others, other_mode(run, LIVE)))
            if admission.instance != run.instance:
                incarnation = workers.incarnation
                if incarnation.ever_in_a_generation and not incarnation.gone:
                    workers.fail(f"the run was begun anew without this node (instance {run.instance})")
                # A run in the other mode is nobody's that is here: the leader begins a new one in its place.
                admission.instance, incarnation.instance = run.instance if run.mode == LIVE else "", ""
            return
        self._follow_end(run)

    def _follow_end(self, run: RunInfo) -> None:
        """The run is over: go home. A node that comes while others are still at their scripts' rest does so, too."""
        workers, admission = self._workers, self._admission
        busy = self._view.at_the_rest() if not admission.instance else []
        if busy:
            admission.instance = run.instance
            text = (
                f"run {self._view.keys.run_id!r} has finished ({run.reason}), and {', '.join(busy)} still "
                f"{'do' if len(busy) > 1 else 'does'} what the script does after training: this node is not needed, and ends "
                "with exit code 0. For a new run choose another --rdzv-id, or start it when they have ended"
            )
            if self._go(ExitReason.LEFT, text):
                log.warning("%s: %s", self.node_id, text)
        elif self._settings.elastic.resume and run.phase is RunPhase.FINISHED and not admission.instance:
            admission.instance = run.instance
            text = f"run {self._view.keys.run_id!r} has finished ({run.reason}), and with resume=true it is not trained again"
            if self._go(ExitReason.LEFT, text):
                log.info("%s: %s", self.node_id, text)
        if run.instance == admission.instance:
            self._supervisor.tell(workers.end_of_run(run))
            if run.phase is RunPhase.FINISHED:
                self._go(ExitReason.LEFT, run.reason, after=NEVER)  # a script may go on after training
            elif self._go(ExitReason.ABORTED, f"run {self._view.keys.run_id!r}: {run.reason}", after=RAISING_GRACE):
                self._supervisor.let_raise()

    def _admit(self) -> None:
        self._submit(self._admission.advance(self._view, self._workers.incarnation))
        self._refuse_if_different()

    def _refuse_if_different(self) -> None:
        refusal = self._admission.refusal
        if refusal and self._go(ExitReason.REFUSED, refusal, after=RAISING_GRACE):
            log.error("%s: %s", self.node_id, refusal)
            self._supervisor.tell(self._workers.refuse(refusal))
            self._supervisor.let_raise()

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _asked_to_leave(self, reason: str) -> None:
        """Leave at an agreed boundary, or at once if this node is in no generation."""
        self._workers.leave(reason)

    def _leave_if_asked(self) -> None:
        workers, incarnation = self._workers, self._workers.incarnation
        if self._exit is not None:
            return
        if not workers.leaving:
            self._grace.withdraw()
            workers.pressed = False
            return
        self._begin_to_leave(workers.leaving)
        workers.pressed = Deadline(self._grace.presses_at).is_due(self._clock.monotonic())
        if incarnation.over:
            self._go(ExitReason.LEFT, workers.leaving, after=GOING_GRACE)
        elif not incarnation.ever_in_a_generation or (incarnation.waits and not self._stays_for_newcomers):
            # Nobody trains with it, so nobody has to stop for it.
            self._supervisor.tell(workers.leave_without_stop(f"this node leaves: {workers.leaving}"))
            self._go(ExitReason.LEFT, workers.leaving, after=GOING_GRACE)
        elif self._grace.ends.is_due(self._clock.monotonic()):
            reason = f"not gone {self._grace.seconds:g} s after it was asked to leave ({workers.leaving})"
            log.warning("%s: %s", self.node_id, reason)
            self._go(ExitReason.OUT_OF_TIME, reason)
            self._supervisor.end_workers(reason)

    @property
    def _stays_for_newcomers(self) -> bool:
        generation, nodes = self._view.generation, self._view.nodes
        records = {**nodes, self.node_id: self._workers.record()}.values()
        max_nodes = self._settings.elastic.max_nodes
        return generation is not None and stays_for_newcomers(generation, records, self.node_id, max_nodes)

    @property
    def _willing(self) -> bool:
        """Whether this agent should lead."""
        run = self._view.run
        over = run is not None and run.phase is not RunPhase.RUNNING and run.instance == self._admission.instance
        if over or self._workers.incarnation.number == 0 or self.exit_reason in (ExitReason.REFUSED, ExitReason.BROKEN):
            return False
        return not self._workers.leaving or not others_can_lead(self._view, self.node_id)

    # --- small things ------------------------------------------------------------------------------------------------

    def _publish_workers(self) -> None:
        if self._workers.incarnation.number == 0:
            return
        record, known = self._workers.record(tells_passed=self._view.any_stopped), self._published
        if record.state is WorkerState.FAILED and (known is None or known.state is not record.state):
            log.info("%s: %s", record.member_id, record.detail)
        self._publish(record)

    def _let_workers_start(self) -> None:
        if self._waiting_starts and (self._view.revision or self._exit is not None):
            self._admission.check_settings(self._view)
            self._refuse_if_different()
            self._answer_starts()

    def _answer_starts(self) -> None:
        for reply in self._waiting_starts:
            reply.set_result(None)
        self._waiting_starts.clear()
