"""`WorkerGroup` is a node's workers as one: what they say goes in, the node's record and messages for them come out.

It does no I/O and has no threads. Rules that this file guards, beside those of `incarnation.py`:

* a worker is told everything once, in this order: the generation, then what became of it;
* what a worker was told does not depend on whether the agent saw every change or only the last state of the keys;
* a leaver is never a failure: the others may be in their next generation before its workers have said that they left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dtf_lightning.elastic.agent.live.incarnation import Incarnation, LocalWorker
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.rules.directives import Directive, DirectiveKind
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState
from dtf_lightning.elastic.run.keys import Fingerprint, RunInfo, RunPhase


@dataclass(frozen=True, kw_only=True)
class AgentAddress:
    """The name of a node, and the host and ports at which its agent is reached."""

    node: str
    host: str
    store_port: int
    mesh_port: int


Orders = Iterator[tuple[LocalWorker, messages.Message]]


class WorkerGroup:
    """A node's workers over all their incarnations: what the node's record says of them, and what they are told.

    Used by the loop's thread only.
    """

    def __init__(self, address: AgentAddress) -> None:
        self.address = address
        self.incarnation = Incarnation()
        """The workers of the last start; `begin` replaces them."""
        self.leaving = ""
        """The reason why this node leaves; empty while it stays."""
        self._asked_by_worker = False
        """Whether only a worker was asked to leave, and not the node."""
        self.pressed = False
        """Whether this node leaves and has no time to wait for another that would take its state over."""
        self.witnessed = ""
        """The run's instance of which this node has seen a living member."""

    @property
    def member_id(self) -> str:
        """The id under which the workers of the last start enter a generation."""
        return f"{self.address.node}#{self.incarnation.number}"

    def begin(self, num_workers: int) -> None:
        """Replace the workers by a new incarnation of `num_workers`, which torchelastic starts."""
        self.incarnation = Incarnation(self.incarnation.number + 1, num_workers)

    # --- what the workers say ----------------------------------------------------------------------------------------

    def said(self, worker: LocalWorker, message: messages.Message, now: float) -> None:
        """Note what a worker has said at `now`, in monotonic seconds."""
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
                self.incarnation.trained = True
            case messages.Suspect():
                worker.suspect, worker.error = message.generation, message.error
            case messages.Finished():
                worker.finished = message.generation
            case messages.LoopEnds():
                worker.loop_end = None if message.withdrawn else message
                worker.passed = (message.generation, message.batches)
            case messages.Leaving():
                # Of a failed incarnation this is no wish to go: torchelastic ends a dead worker's siblings with SIGTERM
                # before it starts them all anew.
                if not self.incarnation.failed and not self.leaving:
                    self.leaving, self._asked_by_worker = message.reason, True
            case messages.Left():
                worker.released = True
                self.incarnation.note_released()
            case messages.Dying():
                incarnation = self.incarnation
                incarnation.refused = incarnation.refused or (message.refused and not incarnation.failed)
                incarnation.aftermath = incarnation.aftermath or (message.aftermath and not incarnation.failed)
                said = "was refused" if message.refused else "failed"
                self.fail(f"worker {worker.local_rank} {said}: {_first_line(message.error)}")
            case messages.Heartbeat():
                worker.passed = (message.generation, message.batches)
            case messages.Happened():
                pass
            case _:
                raise AssertionError(f"a worker does not send {message!r}")

    def leave(self, reason: str) -> None:
        """Take note that the node itself was asked to leave; of several reasons the first stays."""
        self.leaving, self._asked_by_worker = self.leaving or reason, False

    def lost(self, worker: LocalWorker, cause: str) -> bool:
        """Forget a worker that has ended; return whether that is a failure."""
        is_failure = self.incarnation.remove(worker)
        if is_failure:
            self.fail(f"worker {worker.local_rank} (pid {worker.pid}) is gone: {cause}")
        return is_failure

    def fail(self, reason: str) -> None:
        """Put this incarnation out; the first reason stays. One that has left cannot fail any more."""
        if self.incarnation.gone:
            return
        self.incarnation.failed = self.incarnation.failed or reason
        if self._asked_by_worker:  # a sibling's SIGTERM, heard before the failure that was its reason
            self.leaving, self._asked_by_worker = "", False

    # --- what the node says ------------------------------------------------------------------------------------------

    def record(self, *, tells_passed: bool = False) -> NodeRecord:
        """Return the node's record as of now. `tells_passed`: with `NodeRecord.passed`, which changes with every step."""
        workers = self.incarnation
        suspects = workers.suspects()
        stop = workers.first_stop()
        return NodeRecord(
            node=self.address.node,
            host=self.address.host,
            num_workers=workers.num_workers,
            incarnation=max(1, workers.number),
            state=self._state(),
            store_port=self.address.store_port,
            mesh_port=self.address.mesh_port,
            instance=workers.instance,
            generation=workers.generation,
            ready_after=workers.ready_after,
            boundary=workers.boundary,
            suspect=max((w.suspect for w in suspects), default=0),
            leaving=bool(self.leaving),
            pressed=self.pressed and bool(self.leaving),
            witnessed=self.witnessed,
            trained=workers.trained,
            finished=workers.finished,
            rank_zero=workers.rank_zero,
            aftermath=workers.aftermath,
            stopped=(stop[1].generation, stop[1].batches) if stop is not None else None,
            stopped_why=f"worker {stop[0]} after step {stop[1].step}: {stop[1].reason}" if stop is not None else "",
            passed=workers.passed if tells_passed else None,
            detail=workers.failed or self.leaving or (_first_line(suspects[0].error) if suspects else ""),
        )

    def _state(self) -> WorkerState:
        workers = self.incarnation
        if workers.failed:
            return WorkerState.LEFT if workers.refused else WorkerState.FAILED
        if workers.gone:
            return WorkerState.LEFT
        if self.leaving and workers.ever_in_a_generation:
            return WorkerState.DRAINING
        if workers.active:
            return WorkerState.SYNCING if workers.waits else WorkerState.ACTIVE
        if workers.ever_in_a_generation or workers.set_up:
            return WorkerState.SYNCING
        return WorkerState.JOINING

    # --- what the workers are told -----------------------------------------------------------------------------------

    def orders(self, generation: Generation | None, directive: Directive | None) -> Orders:
        """Yield what the workers have not been told yet of the run's generation and of the way to the next."""
        workers = self.incarnation
        if workers.over or not workers.instance:
            return
        member_id = self.member_id
        current = generation or Generation(number=0)
        is_member = any(member.id == member_id for member in current.members)
        pending = directive if directive is not None and directive.target > current.number else None
        if pending is not None and pending.kind is DirectiveKind.FAIL and member_id in pending.failed:
            self.fail(f"put out of the run by the leader: {pending.reason}")
            return
        if not is_member and self.leaving and workers.ever_in_a_generation:
            yield from self._let_go(current)
            return
        if not is_member:
            # Retired without having been handed a generation: it was away while it was put out, and would wait forever.
            if workers.ever_in_a_generation or member_id in current.retired:
                self.fail(f"generation {current.number} was formed without this node ({current.reason})")
            return
        broken = pending is not None and pending.kind is DirectiveKind.FAIL
        if broken and workers.generation < current.number:
            workers.unwound_from = current.number  # never handed out: those who wait need not unwind from it
        for worker in list(workers.workers.values()):
            if worker.generation < current.number and worker.ready_after is not None and not broken:
                yield worker, self._assign(worker, current)
            if pending is not None and worker.generation:
                yield from self._forward(worker, pending)

    def _let_go(self, formed: Generation) -> Orders:
        """Yield a `Fail` to each worker that does not leave yet: the generation was formed without this leaving node."""
        self.incarnation.left_behind = True
        for worker in self.incarnation.workers.values():
            target = worker.generation + 1
            told_to_leave = (DirectiveKind.STOP.value, target) in worker.told
            mark = (DirectiveKind.FAIL.value, target)
            if not told_to_leave and mark not in worker.told and worker.ready_after is None and not worker.released:
                # This agent has not seen the stop. Once it is unwound, the worker is sent home like one that waits.
                worker.told.add(mark)
                reason = f"generation {formed.number} was formed without this node, which leaves"
                yield worker, messages.Fail(target=target, reason=reason)

    def _assign(self, worker: LocalWorker, generation: Generation) -> messages.Assign:
        worker.generation = generation.number
        worker.ready_after = worker.boundary = None
        return messages.Assign(
            generation=generation.to_json(),
            rank=generation.first_rank(self.member_id) + worker.local_rank,
            world_size=generation.world_size,
        )

    def _forward(self, worker: LocalWorker, directive: Directive) -> Orders:
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
                        leave=self.member_id in directive.leaving,
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
        """Yield that the run is over to every worker that was not told: all go home, whatever they are doing."""
        for worker in self.incarnation.workers.values():
            if not worker.released:
                worker.released = run.phase is RunPhase.FINISHED
                mark = (run.phase.value, 0)
                if mark not in worker.told:
                    worker.told.add(mark)
                    kind = messages.Finish if run.phase is RunPhase.FINISHED else messages.Abort
                    yield worker, kind(reason=run.reason)
        self.incarnation.gone = self.incarnation.gone or run.phase is RunPhase.FINISHED

    def leave_without_stop(self, reason: str) -> Orders:
        """Send all workers home without the other nodes having to stop: this node is in no generation."""
        for worker in self.incarnation.workers.values():
            if not worker.released:
                worker.released = True
                yield worker, messages.Finish(reason=reason, run_over=False)
        self.incarnation.gone = True

    def refuse(self, reason: str) -> Orders:
        """Tell all workers that this node may not enter the run, which makes them raise."""
        workers = self.incarnation
        workers.refused = workers.refused or (workers.ever_in_a_generation and not workers.failed)
        for worker in workers.workers.values():
            yield worker, messages.Refused(reason=reason)
        self.fail(reason)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0][:200] if lines else ""
