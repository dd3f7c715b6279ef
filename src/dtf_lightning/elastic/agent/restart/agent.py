"""One node's agent in restart mode: torchelastic starts the workers anew for every round, and they know nothing of us.

The same loop and the same parts as in live mode (session, mesh, peers). What differs: no worker speaks, so the node's
word is its agent's alone, and rounds are decided by every agent alike (`elastic/rules/rounds.py`) instead of by a leader.

    num_nodes_waiting > 0 --> torchelastic stops the workers --> next_rendezvous: record.ready_after = round
    --> all living members ready: one publishes `generation` --> ranks from the members' records --> workers start
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.exit import ExitReason
from dtf_lightning.elastic.agent.inbox import AgentEvent, WorkersStarting
from dtf_lightning.elastic.agent.loop import AgentLoop
from dtf_lightning.elastic.agent.restart.console import RoundConsole
from dtf_lightning.elastic.agent.restart.entry import RunEntry
from dtf_lightning.elastic.agent.restart.inbox import RoundAsked, WorkerFailed, WorkersFinished
from dtf_lightning.elastic.agent.restart.local_round import LocalRound
from dtf_lightning.elastic.agent.restart.local_workers import LocalWorkers
from dtf_lightning.elastic.agent.restart.round_planner import RoundPlanner, last_writes
from dtf_lightning.elastic.agent.restart.round_records import RoundRecords
from dtf_lightning.elastic.events import WorkerLost
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunPhase
from dtf_lightning.elastic.run.transactions import end
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Store
from dtf_lightning.events.log import EventLog

log = logging.getLogger(__name__)


class RestartAgent(AgentLoop):
    """An agent of a run in restart mode: one node's presence in it.

    Args:
        store: closed by the caller, after `close`.
        host: where the other nodes reach this one.
        script: the training script's name; empty when it is not known.
        abort_note: the file in which this node's workers write why the whole run must end.
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
        script: str = "",
        abort_note: Path | None = None,
        clock: Clock | None = None,
        event_log: EventLog | None = None,
    ) -> None:
        super().__init__(store, settings, run_id, node=node, host=host, clock=clock, event_log=event_log)
        self.workers = LocalWorkers(node, lambda *failure: self._inbox.put(WorkerFailed(*failure)))
        self._entry = RunEntry(self._view, node, settings, script, self._clock)
        self._instance = ""
        """The run's instance in which this node takes part."""
        self._records = RoundRecords(self._view, self._peers, node)
        self._console = RoundConsole(node, self._clock, self._report)
        self._planner = RoundPlanner(self._view, self._records, settings.elastic, self._clock, self._console)
        self._round = LocalRound(NodeRecord(node=node, host=host, num_workers=1, mesh_port=self._peers.mesh_port))
        self._kill_at = Deadline()
        """The time at which workers that did not heed SIGTERM are killed."""
        self._deadline = Deadline()
        self._abort_note = abort_note
        self._abort_reason = ""
        """Why the workers say that the run must end; empty while they do not."""

    # --- called by torchelastic's main thread and by signal handlers -------------------------------------------------

    def next_round(self, store_port: int) -> Generation:
        """Wait for a round with this node in it. Its workers have stopped by then.

        Raises `SystemExit` (the run is over, or this node leaves), `RunRefused`, `RunAborted`, `DtfError` (our bug).
        """
        asked = RoundAsked(Future(), store_port)
        self._inbox.put(asked)
        return asked.reply.result()

    def workers_starting(self, num_workers: int) -> None:
        """Note that torchelastic is about to start the workers of the last round that it was given."""
        self.workers.expect(num_workers)
        self._inbox.put(WorkersStarting(num_workers))

    def workers_of(self, generation: Generation) -> list[int]:
        """Return the number of workers of each member of a round, in order, once all members have told it.

        If the round breaks before, what is known so far: torchelastic's next question stops its workers.
        """
        records, num_members = self._records, len(generation.members)
        with self._changed:
            self._changed.wait_for(
                lambda: self._round.stop_reason or self._exit or len(records.num_workers(generation)) == num_members
            )
            known = records.num_workers(generation)
        return [known.get(member.node, member.num_workers) for member in generation.members]

    def finished(self, timeout: float) -> bool:
        """Wait for the other members, because all workers of this node ended well; return whether they ended in time."""
        self._inbox.put(WorkersFinished())
        with self._changed:
            return self._changed.wait_for(lambda: self._exit is not None or self._others_ended(), timeout)

    def _others_ended(self) -> bool:
        view = self._records.round_view()
        entered = self._round.entered
        if entered is None or not self._round.has_finished:
            return view.current.number > self._round.number
        if (view.current.instance, view.current.number) != (entered.instance, entered.number):
            return True  # the next round or the next run has begun: nobody is left in this one
        living = view.living
        return all(member.node not in living or view.has_finished(member.node) for member in view.current.members)

    def num_waiting(self) -> int:
        """Return 1 if the workers have to start anew, after stopping them. Raises like `next_round` when the node goes."""
        with self._changed:
            reason, exit_ = self._round.stop_reason, self._exit
        if not reason and exit_ is None:
            return 0
        # Here and not in the loop: a worker that torchelastic sees ended before it asks is a failure to it.
        self.workers.end(self._settings.stop_grace if exit_ is None else self._grace.seconds)
        if exit_ is not None:
            raise exit_.exception()
        return 1

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _start_parts(self) -> None:
        self.workers.start()

    def _close_parts(self) -> None:
        self.workers.close()  # they have ended

    def _deadlines(self) -> Iterator[Deadline]:
        yield from (self._deadline, self._kill_at)

    def _handle(self, event: AgentEvent) -> None:
        match event:
            case RoundAsked():
                self._kill_at.clear()
                self._round.ask(event)
            case WorkersStarting(num_workers=num_workers):
                self._round.start(num_workers)
                self._console.started(self._round.number, num_workers)
            case WorkerFailed():
                self._worker_failed(event)
            case WorkersFinished():
                self._round.finish()
            case _:
                raise AssertionError(f"nobody sends this in restart mode: {event!r}")

    def _react(self) -> None:
        """Bring all parts of the agent in line with what it knows now."""
        self._deadline.clear()
        self._kill_if_late()
        if not self._view.revision:
            return
        self._follow_run()
        self._abort_run()
        if self._round.record.leaving:
            self._leave()
        self._follow_round()
        if self._round.visible:
            self._publish(self._round.record)
        if self._round.asked is not None and self._exit is not None:
            self._answer()
        elif self._round.asked is not None and self.node_id in self._view.nodes:
            self._advance()

    def _written(self, write: Write, outcome: WriteOutcome) -> None:
        self._planner.written(write, outcome)

    def _last_writes(self) -> Sequence[Write]:
        run, local, rounds = self._view.run, self._round, self._records.round_view()
        if run is None or run.phase is not RunPhase.RUNNING or run.instance != self._instance or not local.number:
            return ()
        if self._abort_reason:
            return (end(self._view, RunPhase.ABORTED, self._abort_reason),)
        return last_writes(
            self._view,
            rounds,
            node=self.node_id,
            finished=local.has_finished and local.number == rounds.current.number,
            failed=bool(local.record.suspect) and not local.record.leaving,
            detail=local.record.detail,
            stays=self._settings.elastic.resume and bool(local.record.leaving),
        )

    def _broke(self, text: str) -> None:
        del text  # torchelastic asks next, and then ends the workers
        if self._round.asked is not None:
            self._answer()

    def _turn_away(self, event: AgentEvent) -> None:
        if isinstance(event, RoundAsked) and self._exit is not None:
            event.reply.set_exception(self._exit.exception())

    # --- what the keys say -------------------------------------------------------------------------------------------

    def _node_changed(self, record: NodeRecord) -> None:
        self._records.note(record)

    def _peer_gone(self, node: str, cause: str) -> None:
        if node in {member.node for member in self._records.current.members}:
            self._console.gone(node, cause)

    def _peer_died(self, node: str, cause: str) -> None:
        self._peer_gone(node, cause)  # rounds go by what the mesh says, also while etcd is away

    def _follow_run(self) -> None:
        """Take part in the run's instance, begin it if no node has, and leave when it is over."""
        run, asked = self._view.run, self._round.asked is not None
        if run is not None and run.instance == self._instance:
            if run.phase is RunPhase.ABORTED:
                self._go(ExitReason.ABORTED, f"run {self._view.keys.run_id!r}: {run.reason}")
            elif run.phase is RunPhase.FINISHED and asked and self._go(ExitReason.LEFT, run.reason):
                log.info("run %r is finished: %s", self._view.keys.run_id, run.reason)
        elif run is not None and self._instance and asked and self._round.entered is None:
            self._go(ExitReason.LEFT, "it waited for a place in a run that is over")
        elif refusal := self._entry.refusal():
            self._go(ExitReason.REFUSED, refusal)
        elif run is not None and self._entry.may_take_part():
            self._instance = run.instance
            self._round.take_part(run.instance)
        elif asked and run is not None and run.phase is RunPhase.FINISHED and self._settings.elastic.resume:
            text = f"run {self._view.keys.run_id!r} has finished ({run.reason}), and with resume=true it is not trained again"
            if self._go(ExitReason.LEFT, text):
                log.info("%s", text)
        elif asked and self._exit is None:
            self._begin_run()

    def _begin_run(self) -> None:
        reason, look_again = self._entry.why_begin()
        self._deadline.bring_forward(look_again)
        if reason:
            write, run = self._entry.begin(reason)
            for attempt in self._planner.attempt(write):
                log.info("%s: run %r begins (%s)", self.node_id, self._view.keys.run_id, reason)
                self._round.take_part(run.instance)  # its record is written first: nobody finds the run without a node
                self._publish(self._round.record)
                self._session.submit(attempt)
            self._deadline.bring_forward(self._planner.deadline.at)

    def _abort_run(self) -> None:
        """End the run for all nodes if this node's workers say that it must end."""
        run = self._view.run
        if self._abort_reason and run is not None and run.instance == self._instance and run.phase is RunPhase.RUNNING:
            self._submit(self._planner.attempt(end(self._view, RunPhase.ABORTED, self._abort_reason)))
            self._deadline.bring_forward(self._planner.deadline.at)

    # --- rounds ------------------------------------------------------------------------------------------------------

    def _follow_round(self) -> None:
        """Decide whether this node's workers may go on, and whether it waits for the next round."""
        current, local = self._records.current, self._round
        if local.is_next(current):
            self._enter(current)
        elif local.asked is not None:
            local.wait_above(current.number)
        elif local.entered is not None and not local.has_finished and not local.stop_reason and not local.has_failed:
            reason = local.why_over(current) or self._why_stop()
            if reason:
                log.info("%s: stops its workers: %s", self.node_id, reason)
                local.stop_reason = reason
                self.workers.freeze()

    def _why_stop(self) -> str:
        reason = self._planner.why_stop()
        self._deadline.bring_forward(self._planner.deadline.at)
        return reason

    def _advance(self) -> None:
        """Take this waiting node's place in a round, or help to form one."""
        if self._instance and self._records.current.instance in ("", self._instance):
            self._submit(self._planner.advance(self._instance))
            self._deadline.bring_forward(self._planner.deadline.at)

    def _enter(self, generation: Generation) -> None:
        rank = [member.node for member in generation.members].index(self.node_id)
        self._console.entered(generation, rank)
        self._kill_at.clear()
        self._planner.begin_round()
        self._round.enter(generation).reply.set_result(generation)

    def _answer(self) -> None:
        assert self._exit is not None
        assert self._round.asked is not None
        asked, self._round.asked = self._round.asked, None
        asked.reply.set_exception(self._exit.exception())

    def _worker_failed(self, failure: WorkerFailed) -> None:
        local = self._round
        if self._abort_note is not None and self._abort_note.is_file():
            self._abort_reason = self._abort_note.read_text()
        if local.asked is not None or local.has_finished:
            return
        # torchelastic waits 30 s for siblings that ignore its SIGTERM, and for ever for frozen ones.
        self._kill_at = Deadline(self._clock.monotonic() + self._settings.stop_grace)
        self.workers.terminate()
        if local.stop_reason or local.has_failed or self._exit is not None:
            return  # ended by us, or a sibling of the one that failed
        cause = f"worker process {failure.pid}: {failure.cause}"
        log.info("%s: %s", self.node_id, cause)
        at, node = self._clock.wall(), self.node_id
        self._report(WorkerLost(at=at, source=node, node=node, local_rank=failure.local_rank, reason=cause))
        local.fail(cause)

    def _kill_if_late(self) -> None:
        if self._kill_at.is_due(self._clock.monotonic()):
            self._kill_at.clear()
            self.workers.kill()

    # --- leaving -----------------------------------------------------------------------------------------------------

    def _asked_to_leave(self, reason: str) -> None:
        """Leave, so that the others go on without this node."""
        self._round.leave(reason)

    def _leave(self) -> None:
        if self._exit is None:
            self._begin_to_leave(self._round.record.detail)
            self._go(ExitReason.LEFT, self._round.record.detail)

    def _go(self, reason: ExitReason, text: str, *, after: float = 0.0) -> bool:
        new = super()._go(reason, text, after=after)
        if new and self._round.number and self._round.asked is None:
            self.workers.freeze()
        return new
