"""`Leader` leads a run while its agent holds the leader key: it asks the rules (`decide`) and writes their decisions.

Rules that this file guards:

* every write compares the leader key's create revision with this term's epoch: one that lost the lease without
  noticing writes nothing (the generation needs no compare of its own: all writes of an epoch come from here, in order,
  and whoever sees its own leader key has seen every write of the epochs before);
* the core takes a decision's write as done, so writes go out in order, one at a time, again until etcd has answered;
  a refused one ends this term, and the next starts from the keys;
* a run id is used again only when its earlier run is over: finished, aborted, or none of its members came back within
  the time that a lease lasts, and no node is there that has come while one of them lived.

No threads and no I/O: the agent's loop calls, and carries the writes out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import Enum

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.live.outbox import Outbox
from dtf_lightning.elastic.agent.status_note import StatusNote
from dtf_lightning.elastic.events import DirectiveIssued, GenerationFormed
from dtf_lightning.elastic.rules.directives import (
    Decision,
    DirectiveKind,
    Event,
    Form,
    NodeChanged,
    NodeGone,
    Publish,
    TimePassed,
    Wait,
)
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.membership import decide, take_over
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.rules.state import MembershipState
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys, RunPhase, RunView, encode
from dtf_lightning.elastic.run.transactions import begin, leads, new_run
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Put
from dtf_lightning.events.registry import Event as LogEvent

log = logging.getLogger(__name__)

GOING_HOME_TIMEOUT = 30.0
"""Seconds that the members of a finished run have to say that they saw its end, before its id is used again."""
MAX_DECISIONS = 20
"""The largest number of decisions in a row without a wait; more of them is a bug of the rules."""


class Stage(Enum):
    """The stage of a leader's term."""

    WAITING_FOR_OLD_MEMBERS = "waiting for old members"  # of an earlier run with this id
    RESETTING = "resetting"  # the run's keys, for a new instance
    LEADING = "leading"
    FENCED = "fenced"  # another one leads


class Leader:
    """One term of an agent as the leader of its run.

    Args:
        epoch: the create revision of this agent's leader key.
    """

    def __init__(self, settings: AgentSettings, keys: RunKeys, *, node: str, epoch: int, clock: Clock) -> None:
        self.epoch = epoch
        self.stage = Stage.WAITING_FOR_OLD_MEMBERS
        self.deadline = Deadline()
        """The time at which `advance` must be called at the latest; an answer from etcd comes as an event."""
        self.happened: list[LogEvent] = []
        """Events for the event log; the agent empties the list."""
        self._settings = settings
        self._keys = keys
        self._node = node
        self._clock = clock
        self._started = clock.monotonic()
        self._run: RunInfo | None = None
        """The record of the run that this term leads, as it began."""
        self._state: MembershipState | None = None
        self._wait: Wait | None = None
        self._outbox = Outbox(leads(keys, epoch), clock)
        self._note = StatusNote(keys, node, clock)
        self._awaited: dict[str, float] = {}
        """Members whose key was away when this term began, and until when (monotonic seconds) they may come back."""

    # --- what the agent calls ----------------------------------------------------------------------------------------

    def advance(self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str]) -> None:
        """Decide what follows from what is known now, until the rules wait.

        `away`: nodes whose key is gone though they may live, by their last record; `gone`: nodes known to be out, and why.
        """
        self.deadline.clear()
        if self.stage is Stage.WAITING_FOR_OLD_MEMBERS:
            self._begin(view, away, gone)
        ours = view.run is not None and self._run is not None and view.run.instance == self._run.instance
        if self.stage is Stage.RESETTING and ours and self._outbox.empty:  # the watch has brought our own reset
            self._lead(view, {}, {})
        if self.stage is Stage.LEADING:
            now = self._clock.monotonic()
            for node in [node for node, until in self._awaited.items() if until <= now]:
                del self._awaited[node]
                self.feed(NodeGone(node, "its key was away and it did not register again"))
            self._decide(TimePassed())
            self.deadline.bring_forward(*self._awaited.values())
            self._write_note()

    def feed(self, event: Event) -> None:
        """Tell the rules what happened to a node."""
        if self.stage is Stage.LEADING:
            if isinstance(event, NodeChanged):
                self._awaited.pop(event.record.node, None)
            self._decide(event)

    def next_write(self) -> Write | None:
        """Return the write that is to be tried now; its outcome must come back through `written`."""
        if self.stage is Stage.FENCED:
            return None
        write = self._outbox.next()
        self.deadline.bring_forward(self._outbox.deadline.at)
        return write

    def written(self, write: Write, outcome: WriteOutcome) -> None:
        """Take in the outcome of a write, whichever part of the agent had asked for it."""
        if self._outbox.written(write, outcome) and outcome is WriteOutcome.REFUSED:
            log.info("%s: no longer leader (epoch %d): %s was refused", self._node, self.epoch, write.label)
            self.stage = Stage.FENCED

    # --- taking over -------------------------------------------------------------------------------------------------

    def _begin(self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str]) -> None:
        run, generation, now = view.run, view.generation, self._clock.monotonic()
        if run is not None and run.phase is not RunPhase.RUNNING:
            still_here = [r.node for r in view.nodes.values() if r.instance == run.instance and r.state not in ENDED]
            if still_here and now < self._started + GOING_HOME_TIMEOUT:
                self.deadline.bring_forward(self._started + GOING_HOME_TIMEOUT)
                return
            if run.phase is RunPhase.FINISHED and self._settings.elastic.resume:
                return  # its agent goes home
            self._reset(f"the earlier run {run.instance} is {run.phase.value}")
        elif run is None or generation is None:
            self._reset("nothing has been trained under this run id")
        elif self._goes_on(view, generation, away, gone):
            self._lead(view, away, gone)
        elif now < self._started + self._settings.comeback:
            self.deadline.bring_forward(self._started + self._settings.comeback)
        elif self._settings.elastic.resume:
            log.info("%s: run %r, which all its nodes have left, goes on", self._node, self._keys.run_id)
            self._lead(view, {}, {}, all_left=True)
        else:
            log.warning(
                "%s: run %r: none of the %d members of generation %d has come back within %g s: that run crashed, "
                "its id is used anew",
                self._node, self._keys.run_id, len(generation.members), generation.number, self._settings.comeback,
            )  # fmt: skip
            self._reset("the earlier run crashed")

    def _goes_on(
        self, view: RunView, generation: Generation, away: Mapping[str, NodeRecord], gone: Mapping[str, str]
    ) -> bool:
        """Tell whether the run lives: in a member, or in a node that has come while one lived."""
        assert view.run is not None
        here = any(node in view.nodes or node in away or node in gone for node in _nodes(generation))
        return here or any(record.witnessed == view.run.instance for record in view.nodes.values())

    def _reset(self, why: str) -> None:
        self.stage = Stage.RESETTING
        self._run = new_run(self._settings.elastic, reason=why, wall=self._clock.wall())
        log.info("%s: run %r begins (%s)", self._node, self._keys.run_id, why)
        self._outbox.add("begin the run", *begin(self._keys, self._run))

    def _lead(
        self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str], *, all_left: bool = False
    ) -> None:
        run, generation, now = view.run, view.generation, self._clock.monotonic()
        assert run is not None
        self.stage, self._run = Stage.LEADING, run
        members: tuple[Member, ...] = generation.members if generation is not None else ()
        missing = set() if all_left else {member.node for member in members} - view.nodes.keys()
        # Nodes that this agent knows to be away are its own business: it probes them and sends NodeGone or NodeChanged.
        self._awaited = dict.fromkeys(missing - away.keys(), now + self._settings.comeback)
        self._state = take_over(
            self._settings.elastic,
            epoch=self.epoch,
            instance=run.instance,
            generation=generation,
            directive=view.directive,
            records=sorted(view.nodes.values(), key=lambda record: record.order),
            now=now,
            wall=self._clock.wall(),
            reachable=missing,
            # Of members that were gone before this agent looked, nobody knows what they had done.
            trained=all_left or run.instance in view.saw_trained or not missing <= away.keys() | gone.keys(),
            untrained=run.untrained and run.instance not in view.saw_trained,
            all_left=all_left,
        )
        for node in missing & gone.keys():
            self._decide(NodeGone(node, gone[node]))

    # --- deciding ----------------------------------------------------------------------------------------------------

    def _decide(self, event: Event) -> None:
        assert self._state is not None
        for _ in range(MAX_DECISIONS):
            now, wall = self._clock.monotonic(), self._clock.wall()
            self._state, decision = decide(self._settings.elastic, self._state, event, now, wall)
            self._note_steps()
            self._act(decision)
            if isinstance(decision, Wait):
                return
            event = TimePassed()
        raise AssertionError(f"the core decides without end; history: {self._state.history}")

    def _note_steps(self) -> None:
        """Let the run's record say that steps were made, once one is known: it outlives all members."""
        assert self._state is not None
        if self._state.trained and not self._state.presumed and self._run is not None and self._run.untrained:
            self._run = replace(self._run, untrained=False)
            self._outbox.add("steps were made", Put(self._keys.run, self._run.encode()))

    def _act(self, decision: Decision) -> None:
        at = self._clock.wall()
        match decision:
            case Wait():
                self._wait = decision
                self.deadline.bring_forward(decision.until)
            case Publish(directive=directive):
                log.debug("%s: %s", directive.kind.value, decision.reason)
                puts = [Put(self._keys.directive, encode(directive.to_json())), self._note.put(decision.reason)]
                if directive.kind in _ENDS:
                    assert self._run is not None
                    puts.append(Put(self._keys.run, self._run.ended(_ENDS[directive.kind], directive.reason).encode()))
                self._outbox.add(f"directive {directive.kind.value}", *puts)
                self.happened.append(
                    DirectiveIssued(
                        at=at, directive=directive.kind.value, target=directive.target, reason=directive.reason
                    )
                )
            case Form(generation=generation):
                log.debug("%s", decision.reason)
                self._outbox.add(
                    f"generation {generation.number}",
                    Put(self._keys.generation, encode(generation.to_json())),
                    self._note.put(decision.reason),
                )
                self.happened.append(
                    GenerationFormed(
                        at=at,
                        generation=generation.number,
                        rescale=generation.kind,
                        reason=generation.reason,
                        members=tuple(member.id for member in generation.members),
                        world_size=generation.world_size,
                        instance=generation.instance,
                    )
                )
            case _:
                raise AssertionError(f"unknown decision {decision!r}")

    def _write_note(self) -> None:
        if self._wait is not None:
            note = self._note.due(self._wait.reason, paused=self._wait.paused, busy=not self._outbox.empty)
            self.deadline.bring_forward(self._note.deadline.at)
            if note is not None:
                self._outbox.add("status", note)


def _nodes(generation: Generation) -> Iterable[str]:
    return (member.node for member in generation.members)


_ENDS = {DirectiveKind.FINISH: RunPhase.FINISHED, DirectiveKind.ABORT: RunPhase.ABORTED}
