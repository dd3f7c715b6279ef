"""This node's workers as one: what they said in, the node's record and messages for them out. No I/O, no threads.

Rules that this file guards:

* all workers of an incarnation enter and leave together: the first death fails the incarnation;
* a worker is told everything once, in this order: the generation, then what became of it;
* what a worker was told does not depend on whether the agent saw every change or only the last state of the keys;
* a worker that was released (it left, or was told that the run is over) may end without that being a failure;
* a leaver is never a failure: the others may be in their next generation before its workers have said that they left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import Fingerprint, RunInfo, RunPhase


@dataclass(kw_only=True)
class LocalWorker:
    """What one worker said, and what it was told."""

    connection: int
    local_rank: int
    pid: int
    heard_at: float
    """Monotonic seconds."""
    ready_after: int | None = None
    """It waits for a generation above this; `None` while it does not wait."""
    fingerprint: Fingerprint | None = None
    boundary: tuple[int, int] | None = None
    active: int = 0
    finished: int = 0
    passed: tuple[int, int] = (0, 0)
    """(generation, boundary): how far it has come, as far as it has said."""
    loop_end: messages.LoopEnds | None = None
    suspect: int = 0
    error: str = ""
    generation: int = 0
    """The last generation that it was handed."""
    released: bool = False
    told: set[tuple[str, int]] = field(default_factory=set)
    """(kind, target) of messages that are sent once."""


@dataclass(frozen=True, kw_only=True)
class AgentAddress:
    """Where this agent can be reached."""

    node: str
    host: str
    store_port: int
    mesh_port: int


Orders = Iterator[tuple[LocalWorker, messages.Message]]


class WorkerGroup:
    """The state of this node's current incarnation. Used by the loop's thread only."""

    def __init__(self, address: AgentAddress) -> None:
        self.address = address
        self.incarnation = 0
        self.num_workers = 1
        self.workers: dict[int, LocalWorker] = {}
        """By local rank, of those that live."""
        self.instance = ""
        """The run's instance, once this incarnation was compared with the run's fingerprint and let in."""
        self.rank_zero = False
        """Whether this incarnation was welcomed as rank zero of set-up."""
        self.leaving = ""
        """Why this node leaves; empty while it does not."""
        self._asked_by_worker = False
        self.failed = ""
        """Why this incarnation failed; empty while it lives."""
        self._refused = False
        """Whether it was in a generation and is refused now, which is no failure of a member."""
        self.gone = False
        """This incarnation left: all its workers were released, their ends are no failures any more."""
        self.pressed = False
        """This node leaves, and has no time to wait for one that would take its state over."""
        self.witnessed = ""
        """The run's instance of which this node has seen a living member."""
        self._trained = False
        """A worker of this incarnation has held a state in which an optimizer step is made."""
        self.unwound_from = 0
        """The last generation that nobody here is part of any more, by order of the leader."""
        self._left_behind = False
        """The others are in a generation without this node, which had asked to leave: it is on its way out."""
        self._num_ended = 0

    def begin(self, num_workers: int) -> None:
        """torchelastic starts the workers anew."""
        self.incarnation += 1
        self.num_workers = num_workers
        self.workers = {}
        self.instance = self.failed = ""
        self.gone = self._refused = self.rank_zero = False
        self._left_behind = self._trained = False
        self.unwound_from = self._num_ended = 0

    # --- what the workers say ----------------------------------------------------------------------------------------

    def attach(self, worker: LocalWorker) -> str:
        """Take a new worker in; why not, or an empty string."""
        if worker.local_rank in self.workers:
            return f"local rank {worker.local_rank} is attached already; one ElasticCallback per worker"
        self.workers[worker.local_rank] = worker
        return ""

    def by_connection(self, connection: int) -> LocalWorker | None:
        return next((w for w in self.workers.values() if w.connection == connection), None)

    def said(self, worker: LocalWorker, message: messages.Message, now: float) -> None:
        """Remember what a worker said."""
        worker.heard_at = now
        match message:
            case messages.Ready():
                worker.ready_after = message.after
                worker.finished = worker.suspect = 0
                worker.loop_end = None
                worker.fingerprint = Fingerprint(settings=message.fingerprint, parameters=message.parameters)
            case messages.At():
                worker.boundary = (message.target, message.boundary)
            case messages.Active():
                worker.active = message.generation
            case messages.Trained():
                self._trained = True
            case messages.Suspect():
                worker.suspect, worker.error = message.generation, message.error
            case messages.Finished():
                worker.finished = message.generation
            case messages.LoopEnds():
                worker.loop_end = None if message.withdrawn else message
                worker.passed = (message.generation, message.boundary)
            case messages.Leaving():
                # Of a failed incarnation this is no wish to go: torchelastic ends a dead worker's siblings with SIGTERM
                # before it starts them all anew.
                if not self.failed and not self.leaving:
                    self.leaving, self._asked_by_worker = message.reason, True
            case messages.Left():
                worker.released = True
                self._note_gone()
            case messages.Dying():
                self._refused = self._refused or (message.refused and not self.failed)
                said = "was refused" if message.refused else "failed"
                self.fail(f"worker {worker.local_rank} {said}: {_first_line(message.error)}")
            case messages.Heartbeat():
                worker.passed = (message.generation, message.boundary)
            case messages.Happened():
                pass
            case _:
                raise AssertionError(f"a worker does not send {message!r}")

    def lost(self, worker: LocalWorker, cause: str) -> bool:
        """The worker is gone; whether that is a failure."""
        del self.workers[worker.local_rank]
        self._num_ended += 1
        if worker.released or self.gone or self._left_behind:
            self._note_gone()
            return False
        self.fail(f"worker {worker.local_rank} (pid {worker.pid}) is gone: {cause}")
        return True

    def _note_gone(self) -> None:
        num_released = self._num_ended + sum(w.released for w in self.workers.values())
        self.gone = self.gone or (num_released >= self.num_workers and not self.failed)

    def fail(self, reason: str) -> None:
        """This incarnation is out; the first reason stays."""
        if self.gone:
            return
        self.failed = self.failed or reason
        if self._asked_by_worker:  # a sibling's SIGTERM, heard before the failure that was its reason
            self.leaving, self._asked_by_worker = "", False

    # --- what the node says ------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return len(self.workers) == self.num_workers

    @property
    def set_up(self) -> bool:
        """All workers have built their model and wait."""
        return self.complete and all(w.ready_after is not None for w in self.workers.values())

    @property
    def generation(self) -> int:
        return min((w.generation for w in self.workers.values()), default=0) if self.complete else 0

    @property
    def ever_in_a_generation(self) -> bool:
        return any(w.generation for w in self.workers.values())

    def record(self, *, tells_passed: bool = False) -> NodeRecord:
        """The node's record as of now. `tells_passed`: with `NodeRecord.passed`, which changes with every step."""
        workers = self.workers.values()
        boundaries = {w.boundary for w in workers}
        targets = {boundary[0] for boundary in boundaries if boundary is not None}
        answered = self.complete and None not in boundaries and len(targets) == 1
        suspects = [w for w in workers if w.suspect]
        stop = self._first_stop()
        passed = max((w.passed for w in workers), default=None) if tells_passed else None
        return NodeRecord(
            node=self.address.node,
            host=self.address.host,
            num_workers=self.num_workers,
            incarnation=max(1, self.incarnation),
            state=self._state(),
            store_port=self.address.store_port,
            mesh_port=self.address.mesh_port,
            instance=self.instance,
            generation=self.generation,
            ready_after=self._ready_after(),
            boundary=max(b for b in boundaries if b is not None) if answered else None,
            suspect=max((w.suspect for w in suspects), default=0),
            leaving=bool(self.leaving),
            pressed=self.pressed and bool(self.leaving),
            witnessed=self.witnessed,
            trained=self._trained,
            finished=min((w.finished for w in workers), default=0) if self.complete else 0,
            rank_zero=self.rank_zero,
            stopped=(stop[1].generation, stop[1].boundary) if stop is not None else None,
            stopped_why=f"worker {stop[0]} after step {stop[1].step}: {stop[1].reason}" if stop is not None else "",
            passed=passed,
            detail=self.failed or self.leaving or (_first_line(suspects[0].error) if suspects else ""),
        )

    def _first_stop(self) -> tuple[int, messages.LoopEnds] | None:
        """The worker that left the training loop first, of those that did, and what it said."""
        stops = [(w.local_rank, w.loop_end) for w in self.workers.values() if w.loop_end is not None]
        return min(stops, key=lambda stop: (-stop[1].generation, stop[1].boundary, stop[0]), default=None)

    def _state(self) -> WorkerState:
        if self.failed:
            return WorkerState.LEFT if self._refused else WorkerState.FAILED
        if self.gone:
            return WorkerState.LEFT
        if self.leaving and self.ever_in_a_generation:
            return WorkerState.DRAINING
        if self.complete and self.generation and all(w.active == self.generation for w in self.workers.values()):
            return WorkerState.ACTIVE if self._ready_after() is None else WorkerState.SYNCING
        if self.ever_in_a_generation or self.set_up:
            return WorkerState.SYNCING
        return WorkerState.JOINING

    def _ready_after(self) -> int | None:
        if not self.set_up or not self.instance or self.failed or self.gone:
            return None
        said = min(w.ready_after for w in self.workers.values() if w.ready_after is not None)
        return max(said, self.unwound_from)

    @property
    def waits(self) -> bool:
        """Its workers are unwound and in no step."""
        return self._ready_after() is not None

    def own_difference(self) -> str | None:
        """How this node's workers differ among themselves."""
        prints = [w.fingerprint for w in self.workers.values() if w.fingerprint is not None]
        for other in prints[1:]:
            difference = prints[0].first_difference(other)
            if difference is not None:
                return f"two workers of one node: {difference}"
        return None

    def fingerprint(self) -> Fingerprint | None:
        return next((w.fingerprint for w in self.workers.values() if w.fingerprint is not None), None)

    # --- what the workers are told -----------------------------------------------------------------------------------

    def orders(self, generation: Generation | None, directive: Directive | None) -> Orders:
        """What the workers have not been told yet of the run's generation and of the way to the next."""
        if self.failed or self.gone or not self.instance:
            return
        member_id = f"{self.address.node}#{self.incarnation}"
        current = generation or Generation(number=0)
        is_member = any(member.id == member_id for member in current.members)
        pending = directive if directive is not None and directive.target > current.number else None
        if pending is not None and pending.kind is DirectiveKind.FAIL and member_id in pending.failed:
            self.fail(f"put out of the run by the leader: {pending.reason}")
            return
        if not is_member and self.leaving and self.ever_in_a_generation:
            yield from self._let_go(current)
            return
        if not is_member:
            # Retired without having been handed a generation: it was away while it was put out, and would wait forever.
            if self.ever_in_a_generation or member_id in current.retired:
                self.fail(f"generation {current.number} was formed without this node ({current.reason})")
            return
        broken = pending is not None and pending.kind is DirectiveKind.FAIL
        if broken and self.generation < current.number:
            self.unwound_from = current.number  # never handed out: those who wait need not unwind from it
        for worker in list(self.workers.values()):
            if worker.generation < current.number and worker.ready_after is not None and not broken:
                yield worker, self._assign(worker, current, member_id)
            if pending is not None and worker.generation:
                yield from self._forward(worker, pending, member_id)

    def _let_go(self, formed: Generation) -> Orders:
        """The generation was formed without this node, as it wished: its workers unwind and leave, if they do not yet."""
        self._left_behind = True
        for worker in self.workers.values():
            target = worker.generation + 1
            told_to_leave = (DirectiveKind.STOP.value, target) in worker.told
            mark = (DirectiveKind.FAIL.value, target)
            if not told_to_leave and mark not in worker.told and worker.ready_after is None and not worker.released:
                # This agent has not seen the stop. Once it is unwound, the worker is sent home like one that waits.
                worker.told.add(mark)
                reason = f"generation {formed.number} was formed without this node, which leaves"
                yield worker, messages.Fail(target=target, reason=reason)

    def _assign(self, worker: LocalWorker, generation: Generation, member_id: str) -> messages.Assign:
        worker.generation = generation.number
        worker.ready_after = worker.boundary = None
        return messages.Assign(
            generation=generation.to_json(),
            rank=generation.first_rank(member_id) + worker.local_rank,
            world_size=generation.world_size,
        )

    def _forward(self, worker: LocalWorker, directive: Directive, member_id: str) -> Orders:
        mark = (directive.kind.value, directive.target)
        waits = worker.ready_after is not None
        if mark in worker.told or worker.generation != directive.target - 1:
            return
        match directive.kind:
            case DirectiveKind.PREPARE if not waits:
                worker.told.add(mark)
                yield worker, messages.Prepare(target=directive.target)
            case DirectiveKind.STOP if not waits:
                worker.told.add(mark)
                yield (
                    worker,
                    messages.Stop(
                        target=directive.target,
                        boundary=directive.boundary,
                        leave=member_id in directive.leaving,
                        last=directive.leaves_nobody,
                        reason=directive.reason,
                    ),
                )
            case DirectiveKind.FAIL if not waits:
                worker.told.add(mark)
                yield worker, messages.Fail(target=directive.target, reason=directive.reason)
            case _:
                pass  # it waits already; FINISH and ABORT are told by `end_of_run`, from the run's own key

    def end_of_run(self, run: RunInfo) -> Orders:
        """The run is over: everybody goes home, whatever they are doing."""
        for worker in self.workers.values():
            if not worker.released:
                worker.released = run.phase is RunPhase.FINISHED
                mark = (run.phase.value, 0)
                if mark not in worker.told:
                    worker.told.add(mark)
                    kind = messages.Finish if run.phase is RunPhase.FINISHED else messages.Abort
                    yield worker, kind(reason=run.reason)
        self.gone = self.gone or run.phase is RunPhase.FINISHED

    def leave_without_stop(self, reason: str) -> Orders:
        """Leave without the others having to stop: this node is in no generation."""
        for worker in self.workers.values():
            if not worker.released:
                worker.released = True
                yield worker, messages.Finish(reason=reason, run_over=False)
        self.gone = True

    def refuse(self, reason: str) -> Orders:
        """This node may not enter the run; its workers raise."""
        self._refused = self._refused or (self.ever_in_a_generation and not self.failed)
        for worker in self.workers.values():
            yield worker, messages.Refused(reason=reason)
        self.fail(reason)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else ""
