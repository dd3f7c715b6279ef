"""The leader's part of an agent: it drives the core (`elastic.decide`) while this agent holds the leader key.

Rules that this file guards:

* every write compares the leader key's create revision with this leader's epoch: one that lost the lease without
  noticing writes nothing (the generation needs no compare of its own: all writes of an epoch come from here, in order,
  and whoever sees its own leader key has seen every write of the epochs before);
* the core takes a decision's write as done, so writes go out in order, one at a time, again until etcd has answered;
  a refused one ends this leader, and the next starts from the keys;
* a run id is used again only when its earlier run is over: finished, aborted, or none of its members came back within
  the time that a lease lasts.

No threads and no I/O: the agent's loop calls, and carries the writes out.
"""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Mapping
from enum import Enum

from dtf_lightning.clock import Clock
from dtf_lightning.elastic.agent.inbox import Outcome, Write
from dtf_lightning.elastic.events import DirectiveIssued, GenerationFormed, RunEnded
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
from dtf_lightning.elastic.rules.generation import Member
from dtf_lightning.elastic.rules.membership import decide, take_over
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.rules.state import MembershipState
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys, RunPhase, RunStatusNote, RunView, encode
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.events.registry import Event as LogEvent

log = logging.getLogger(__name__)

RETRY_PAUSE = 0.2
"""Seconds before a write is tried again that etcd did not answer."""
STATUS_PAUSE = 0.3
"""Seconds between two changes of the `status` key."""
GOING_HOME_TIMEOUT = 30.0
"""Seconds that the members of a finished run get to say that they saw it, before their run id is used again."""
MAX_DECISIONS = 20
"""In a row without a wait: more is a bug of the core."""


class Stage(Enum):
    """What this leader is at."""

    WAITING_FOR_OLD_MEMBERS = "waiting for old members"  # of an earlier run with this id
    RESETTING = "resetting"  # the run's keys, for a new instance
    LEADING = "leading"
    FENCED = "fenced"  # another one leads


class Leader:
    """One term of one leader.

    Args:
        epoch: the create revision of this agent's leader key.
    """

    def __init__(self, settings: AgentSettings, keys: RunKeys, *, node: str, epoch: int, clock: Clock) -> None:
        self.epoch = epoch
        self.stage = Stage.WAITING_FOR_OLD_MEMBERS
        self.until: float | None = None
        """Monotonic seconds at which `advance` wants to be called at the latest; `None`: with the next event."""
        self.happened: list[LogEvent] = []
        """For the event log; the agent empties it."""
        self._settings = settings
        self._keys = keys
        self._node = node
        self._clock = clock
        self._started = clock.monotonic()
        self._state: MembershipState | None = None
        self._outbox: deque[Write] = deque()
        self._in_flight: Write | None = None
        self._retry_at = 0.0
        self._instance = ""
        self._awaited: dict[str, float] = {}
        """Members whose key was away when this term began, and until when (monotonic) they may come back."""
        self._note: RunStatusNote | None = None
        self._noted_at = float("-inf")
        self._wait: Wait | None = None

    # --- what the agent calls ----------------------------------------------------------------------------------------

    def advance(self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str]) -> None:
        """Go on from what is known now.

        `away`: nodes whose key is gone though they may live, by their last record; `gone`: nodes known to be out, and why.
        """
        self.until = None
        if self.stage is Stage.WAITING_FOR_OLD_MEMBERS:
            self._begin(view, away, gone)
        ours = view.run is not None and view.run.instance == self._instance
        if self.stage is Stage.RESETTING and ours and not self._outbox:  # the watch has brought our own reset
            self._lead(view, {}, {})
        if self.stage is Stage.LEADING:
            now = self._clock.monotonic()
            for node in [node for node, until in self._awaited.items() if until <= now]:
                del self._awaited[node]
                self.feed(NodeGone(node, "its key was away and it did not register again"))
            self._decide(TimePassed())
            self._wake_at(min(self._awaited.values(), default=None))
            self._write_note()

    def feed(self, event: Event) -> None:
        """Tell the core what happened to a node."""
        if self.stage is Stage.LEADING:
            if isinstance(event, NodeChanged):
                self._awaited.pop(event.record.node, None)
            self._decide(event)

    def next_write(self) -> Write | None:
        """The write to be tried now; the answer must come back through `written`."""
        if self._in_flight is not None or not self._outbox or self.stage is Stage.FENCED:
            return None
        now = self._clock.monotonic()
        if now < self._retry_at:
            self._wake_at(self._retry_at)
            return None
        self._in_flight = self._outbox[0]
        return self._in_flight

    def written(self, write: Write, outcome: Outcome) -> bool:
        """How the write went; false if it was none of this term's."""
        if write is not self._in_flight:
            return False
        self._in_flight = None
        match outcome:
            case Outcome.APPLIED:
                self._outbox.popleft()
            case Outcome.UNKNOWN:
                self._retry_at = self._clock.monotonic() + RETRY_PAUSE
            case Outcome.REFUSED:
                log.info("%s: no longer leader (epoch %d): %s was refused", self._node, self.epoch, write.label)
                self.stage = Stage.FENCED
        return True

    # --- taking over -------------------------------------------------------------------------------------------------

    def _begin(self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str]) -> None:
        run, generation, now = view.run, view.generation, self._clock.monotonic()
        if run is not None and run.phase is not RunPhase.RUNNING:
            still_here = [r.node for r in view.nodes.values() if r.instance == run.instance and r.state not in ENDED]
            if still_here and now < self._started + GOING_HOME_TIMEOUT:
                self._wake_at(self._started + GOING_HOME_TIMEOUT)
                return
            self._reset(f"the earlier run {run.instance} is {run.phase.value}")
        elif run is None or generation is None:
            self._reset("nothing has been trained under this run id")
        elif any(member.node in view.nodes or member.node in away for member in generation.members):
            self._lead(view, away, gone)
        elif now < self._started + self._comeback:
            self._wake_at(self._started + self._comeback)
        else:
            log.warning(
                "%s: run %r: none of the %d members of generation %d has come back within %g s: that run crashed, "
                "its id is used anew",
                self._node, self._keys.run_id, len(generation.members), generation.number, self._comeback,
            )  # fmt: skip
            self._reset("the earlier run crashed")

    @property
    def _comeback(self) -> float:
        """Seconds in which an agent that lost its lease registers again, if it lives."""
        return self._settings.lease_ttl + 2.0

    def _reset(self, why: str) -> None:
        self.stage = Stage.RESETTING
        elastic = self._settings.elastic
        self._instance = uuid.uuid4().hex[:12]
        run = RunInfo(
            instance=self._instance,
            reason=why,
            started_at=self._clock.wall(),
            min_nodes=elastic.min_nodes,
            max_nodes=elastic.max_nodes,
        )
        log.info("%s: run %r begins (%s)", self._node, self._keys.run_id, why)
        stale = (self._keys.generation, self._keys.directive, self._keys.fingerprint, self._keys.status)
        self._enqueue("begin the run", Put(self._keys.run, run.encode()), *(Delete(key) for key in stale))

    def _lead(self, view: RunView, away: Mapping[str, NodeRecord], gone: Mapping[str, str]) -> None:
        run, generation, now = view.run, view.generation, self._clock.monotonic()
        assert run is not None
        self.stage = Stage.LEADING
        members: tuple[Member, ...] = generation.members if generation is not None else ()
        missing = {member.node for member in members} - view.nodes.keys()
        # Nodes that this agent knows to be away are its own business: it probes them and sends NodeGone or NodeChanged.
        self._awaited = dict.fromkeys(missing - away.keys(), now + self._comeback)
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
        )
        for node in missing & gone.keys():
            self._decide(NodeGone(node, gone[node]))

    # --- deciding ----------------------------------------------------------------------------------------------------

    def _decide(self, event: Event) -> None:
        assert self._state is not None
        for _ in range(MAX_DECISIONS):
            now, wall = self._clock.monotonic(), self._clock.wall()
            self._state, decision = decide(self._settings.elastic, self._state, event, now, wall)
            self._act(decision)
            if isinstance(decision, Wait):
                return
            event = TimePassed()
        raise AssertionError(f"the core decides without end; history: {self._state.history}")

    def _act(self, decision: Decision) -> None:
        at = self._clock.wall()
        match decision:
            case Wait():
                self._wait = decision
                self._wake_at(decision.until)
            case Publish(directive=directive):
                log.debug("%s: %s", directive.kind.value, decision.reason)
                puts = [Put(self._keys.directive, encode(directive.to_json())), self._put_note(decision.reason)]
                if directive.kind in (DirectiveKind.FINISH, DirectiveKind.ABORT):
                    phase = RunPhase.FINISHED if directive.kind is DirectiveKind.FINISH else RunPhase.ABORTED
                    puts.append(Put(self._keys.run, self._run_over(phase, directive.reason).encode()))
                    self.happened.append(RunEnded(at=at, phase=phase.value, reason=directive.reason))
                self._enqueue(f"directive {directive.kind.value}", *puts)
                self.happened.append(
                    DirectiveIssued(
                        at=at, directive=directive.kind.value, target=directive.target, reason=directive.reason
                    )
                )
            case Form(generation=generation):
                log.debug("%s", decision.reason)
                self._enqueue(
                    f"generation {generation.number}",
                    Put(self._keys.generation, encode(generation.to_json())),
                    self._put_note(decision.reason),
                )
                self.happened.append(
                    GenerationFormed(
                        at=at,
                        generation=generation.number,
                        rescale=generation.kind,
                        reason=generation.reason,
                        members=tuple(member.id for member in generation.members),
                        world_size=generation.world_size,
                    )
                )
            case _:
                raise AssertionError(f"unknown decision {decision!r}")

    def _run_over(self, phase: RunPhase, reason: str) -> RunInfo:
        assert self._state is not None
        elastic = self._settings.elastic
        return RunInfo(
            instance=self._state.instance,
            phase=phase,
            reason=reason,
            min_nodes=elastic.min_nodes,
            max_nodes=elastic.max_nodes,
        )

    def _write_note(self) -> None:
        """Say what is waited for, for `dtf status`: when it changes, and not too often (reasons count seconds)."""
        if self._wait is None:
            return
        note = self._note
        if note is not None and (note.reason, note.paused) == (self._wait.reason, self._wait.paused):
            return
        now = self._clock.monotonic()
        if self._outbox or now < self._noted_at + STATUS_PAUSE:
            self._wake_at(max(now, self._noted_at) + STATUS_PAUSE)
            return
        self._enqueue("status", self._put_note(self._wait.reason, paused=self._wait.paused))

    def _put_note(self, reason: str, *, paused: bool = False) -> Put:
        self._note = RunStatusNote(leader=self._node, reason=reason, paused=paused, at=self._clock.wall())
        self._noted_at = self._clock.monotonic()
        return Put(self._keys.status, self._note.encode())

    def _enqueue(self, label: str, *puts: Put | Delete) -> None:
        fence = Compare(self._keys.leader, "create", "=", self.epoch)
        self._outbox.append(Write(label=label, compares=(fence,), puts=puts))

    def _wake_at(self, at: float | None) -> None:
        if at is not None:
            self.until = at if self.until is None else min(self.until, at)
