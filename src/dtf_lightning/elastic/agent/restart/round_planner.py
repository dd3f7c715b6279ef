"""`RoundPlanner` decides when a node's workers have to stop for a new round, and what the node writes to form one.

Rules that this file guards:

* all waiting nodes come to the same decision; the first in the next round publishes it, the others a turn later each;
* a round is published only if all that it was decided from is still so;
* while nobody trains, the first of the waiting nodes says in the run's `status` key what is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.one_write import OneWrite
from dtf_lightning.elastic.agent.restart.console import RoundConsole
from dtf_lightning.elastic.agent.restart.round_records import RoundRecords
from dtf_lightning.elastic.agent.status_note import StatusNote
from dtf_lightning.elastic.rules.rounds import (
    Arrivals,
    RoundDecision,
    RoundStep,
    RoundView,
    next_round,
    plan_round,
    why_let_in,
    why_stop,
)
from dtf_lightning.elastic.run.keys import RunPhase, RunView, encode
from dtf_lightning.elastic.run.transactions import end, unchanged
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Compare, Put

TURN = 0.3
"""Seconds after which the next node in line publishes a round that the first has not published."""
RETRY_PAUSE = 0.1


class RoundPlanner:
    """One node's share in the decisions about rounds. Used under the agent's lock."""

    def __init__(
        self, view: RunView, records: RoundRecords, settings: ElasticSettings, clock: Clock, console: RoundConsole
    ) -> None:
        self.deadline = Deadline()
        """The time at which `why_stop` or `advance`, whichever was called last, must be called again at the latest."""
        self._view = view
        self._records = records
        self._settings = settings
        self._clock = clock
        self._console = console
        self._arrivals = Arrivals()
        self._write = OneWrite(clock, refused=RETRY_PAUSE, unanswered=RETRY_PAUSE)
        self._status_write = OneWrite(clock, refused=RETRY_PAUSE, unanswered=RETRY_PAUSE)
        self._note = StatusNote(view.keys, records.node, clock)

    def begin_round(self) -> None:
        """Note that this node is in a new round: nodes that wait from now on wait for the next one."""
        self._arrivals = Arrivals()

    def why_stop(self) -> str:
        """Return why the latest round has to stop, broken or for joiners; an empty text while it need not."""
        self.deadline.clear()
        view = self._records.round_view()
        reason, look_again = why_stop(view), None
        if not reason:
            reason, look_again = why_let_in(self._settings, view, self._arrivals, self._clock.monotonic())
        self.deadline.bring_forward(look_again)
        return reason

    def advance(self, instance: str) -> Iterator[Write]:
        """Yield what this waiting node writes to have a round formed, or the run ended."""
        self.deadline.clear()
        view, now = self._records.round_view(), self._clock.monotonic()
        ready = tuple(sorted(record.node for record in view.records if view.is_ready(record)))
        self._arrivals.note(ready, now)
        quiet_since = self._arrivals.quiet_since
        decision = plan_round(self._settings, view, quiet_since=quiet_since, now=now, wall=self._clock.wall())
        if decision.step is RoundStep.WAIT:
            self.deadline.bring_forward(self._console.waits(decision), decision.until)
            yield from self._say_what_is_waited_for(view, decision)
            return
        order = [record.node for record in decision.members]
        turn = order.index(self._records.node) if self._records.node in order else 0
        if now < quiet_since + TURN * turn:
            self.deadline.bring_forward(quiet_since + TURN * turn)
            return
        if decision.step is RoundStep.ABORT:
            yield from self.attempt(end(self._view, RunPhase.ABORTED, decision.reason, self._same_round))
        else:
            yield from self.attempt(self._form(view, decision, instance))

    def attempt(self, write: Write) -> Iterator[Write]:
        """Yield the write unless another one is under way or has just failed."""
        yield from self._write.attempt(write)
        self.deadline.bring_forward(self._write.deadline.at)

    def written(self, write: Write, outcome: WriteOutcome) -> None:
        """Take in the outcome of a write, whichever part of the agent had asked for it."""
        if self._write.written(write, outcome) or not self._status_write.written(write, outcome):
            return
        if outcome is not WriteOutcome.APPLIED:
            self._note.forget()

    @property
    def _same_round(self) -> Compare:
        return unchanged(self._view, self._view.keys.generation)

    def _form(self, view: RoundView, decision: RoundDecision, instance: str) -> Write:
        generation = next_round(view.current, decision, instance=instance, wall=self._clock.wall())
        keys = self._view.keys
        members = (keys.node(record.node) for record in decision.members)
        reason = f"round {generation.number}: {generation.reason}"
        return Write(
            label=f"round {generation.number}",
            compares=tuple(unchanged(self._view, key) for key in (keys.generation, keys.run, *members)),
            puts=(Put(keys.generation, encode(generation.to_json())), self._note.put(reason)),
        )

    def _say_what_is_waited_for(self, view: RoundView, decision: RoundDecision) -> Iterator[Write]:
        waiting = sorted((r.order, r.node) for r in view.records if view.is_ready(r))
        if decision.nobody_trains and waiting and waiting[0][1] == self._records.node:
            note = self._note.due(decision.reason, paused=decision.paused, busy=self._status_write.under_way)
            self.deadline.bring_forward(self._note.deadline.at)
            if note is not None:
                write = Write(label="status", compares=(self._same_round,), puts=(note,))
                yield from self._status_write.attempt(write)


def last_writes(
    view: RunView, rounds: RoundView, *, node: str, finished: bool, failed: bool, detail: str, stays: bool
) -> tuple[Write, ...]:
    """Return the writes that end the run with its last node, so that spares go home and the id can be used again at
    once.

    Args:
        finished, failed: what became of this node's workers in the latest round; a node that leaves has not failed.
        detail: why the node goes, for people.
        stays: the id stays the run's, though its last node leaves.
    """
    others = [
        member.node
        for member in rounds.current.members
        if member.node != node and member.node in rounds.living and not rounds.has_finished(member.node)
    ]
    same_round = unchanged(view, view.keys.generation)
    if finished and not others:
        return (end(view, RunPhase.FINISHED, f"all nodes of round {rounds.current.number} finished", same_round),)
    if set(rounds.living) <= {node} and (failed or not stays):
        phase = RunPhase.ABORTED if failed else RunPhase.FINISHED
        return (end(view, phase, f"the last node is gone: {detail or 'its workers ended'}", same_round),)
    return ()
