"""Live mode's two policies: an agent tells a worker the run's members, and living peers send newcomers their state."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import torch.distributed as dist

from dtf_lightning import environment
from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.collectives.gathering import gather_numbers
from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.collectives.state_transfer import Parcel, receive_parcel, send_parcel
from dtf_lightning.elastic.collectives.warm_up import warm_up
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.lightning.rewind.epoch_metrics import dump_logged, load_logged
from dtf_lightning.elastic.lightning.run.exits import StopForRescale, WorkerLeft, leave
from dtf_lightning.elastic.lightning.run.live_snapshots import LiveSnapshots
from dtf_lightning.elastic.lightning.run.policies import StateParts, Verdict
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.signals import graceful_signals
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.link.messages import Happened, Welcome
from dtf_lightning.elastic.link.worker_link import RunFinished, WorkerLink
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.resume import (
    LoopPhase,
    Position,
    ResumePlan,
    choose_sources,
    hooks_are_done,
    send_from,
)
from dtf_lightning.errors import DtfError, GenerationBroken, PeerError, RunAborted, RunRefused, StateRefused
from dtf_lightning.events.registry import Event

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

VERDICT_FACTOR = 10
"""Number of `rescale_timeout`s that a suspected failure waits for the leader's decision: etcd may be unreachable."""


MOST_TOLD = 2000
"""The characters of an error that the agent is told."""


class LiveMembership:
    """Learn membership changes from the node's agent, over a socket. A `Membership`.

    Raises `WorkerLeft` (exit code 0) if the run is over already, and what else `WorkerLink` raises.
    """

    keeps_processes = True

    def __init__(self, agent_socket: str) -> None:
        self.group = GenerationGroup()
        self._prefix = ""
        """That of the current generation's keys in its store."""
        try:
            self.link = WorkerLink(agent_socket, environment.local_rank(), on_fail=self.group.cut)
        except RunFinished as finished:
            log.warning("this worker is not needed, and ends with exit code 0: %s", finished)
            raise WorkerLeft(str(finished), run_goes_on=not finished.run_over) from None
        self.group.on_forgotten = self.link.end_forgotten
        welcome = self.welcome
        self.group.form_local(
            host=welcome.store_host,
            port=welcome.store_port,
            prefix=f"{welcome.node}/{welcome.incarnation}",
            rank=environment.local_rank(),
            world_size=welcome.num_local_workers,
        )

    @property
    def welcome(self) -> Welcome:
        return self.link.welcome

    def attach(self, settings: RunSettings, fingerprint: dict[str, str], run_dir: Path) -> Generation | None:  # noqa: ARG002
        return None

    def get_ready(self, trainer: pl.Trainer) -> None:  # noqa: ARG002
        warm_up()  # on the node's local group

    def assignment(self, fingerprint: dict[str, str], parameters: tuple[str, ...], run_dir: Path) -> World:
        self.group.destroy()
        try:
            assignment = self.link.ready(fingerprint, parameters, run_dir=str(run_dir))
        except RunFinished as finished:
            raise WorkerLeft(str(finished), run_goes_on=not finished.run_over) from None
        generation = Generation.from_json(assignment.generation)
        self._prefix = self.store_prefix(generation)
        return World(generation=generation, rank=assignment.rank, size=assignment.world_size)

    def store_prefix(self, generation: Generation) -> str:
        return f"{generation.instance}/gen{generation.number}"

    def active(self, step: int) -> None:
        self.link.active(step)

    def at_boundary(self, step: int) -> bool:
        self.link.step = step
        return self.link.at_boundary()

    def begin_batch(self) -> None:
        self.link.begin_batch()

    def check(self) -> None:
        self.link.check()

    def before_validation_batch(self, world: World, *, sanity_checking: bool) -> None:
        """Do nothing: a planned rescale waits for the next step boundary, and a failure cuts the collectives."""

    def verdict(self, error: BaseException) -> Verdict:
        if isinstance(error, Exception) and self.link.abort_reason is not None:
            raise RunAborted(self.link.abort_reason) from None
        if isinstance(error, (StopForRescale, GenerationBroken)):
            return Verdict.RESCALE
        if isinstance(error, Exception) and not isinstance(error, DtfError):
            if self.link.broken:
                return Verdict.RESCALE
            if is_communication_error(error) and self.link.suspect(
                f"{type(error).__name__}: {error}".splitlines()[0][:300],
                timeout=VERDICT_FACTOR * self.welcome.rescale_timeout,
            ):
                return Verdict.RESCALE
        return Verdict.GOODBYE if isinstance(error, (WorkerLeft, RunAborted)) else Verdict.OWN

    def failed(self, error: BaseException) -> None:
        refused = isinstance(error, RunRefused)
        self.link.dying((str(error) if refused else f"{type(error).__name__}: {error}")[:MOST_TOLD], refused=refused)
        self.group.cut()

    def break_off(self) -> None:
        """Do nothing: the link cuts the process group of a broken generation; a planned rescale leaves it intact."""

    def drop_group(self, *, planned: bool) -> None:
        if not planned:
            self.group.cut()
        self.group.destroy()

    def leave_reason(self) -> str | None:
        stop = self.link.stopping
        return stop.reason if stop is not None and stop.leave and not self.link.broken else None

    def leave(self, reason: str, step: int) -> None:  # noqa: ARG002
        self.link.left()
        leave(WorkerLeft(reason))

    def leaving(self, reason: str) -> None:
        self.link.leaving(reason)

    def loop_ends(self, step: int, reason: str) -> None:
        """Say so, and wait a while for the others to end here, too: the leader ends the run where one trains on."""
        self.link.loop_ends(step, reason)
        self.group.wait_for_the_end_of_all(self._prefix, self.link.batches, self.link.check)

    def finished(self, step: int) -> None:
        self.link.finished(step)

    def go_on_alone(self, world: World, what: str, error: Exception) -> None:
        if world.size > 2:
            raise PeerError(
                f"a worker of {world.size} went away in {what}, or before it, after the end of training "
                f"({str(error).splitlines()[0][:200]}). Its share of the data is evaluated by nobody, and the others cannot "
                f"divide it anew, because the run has finished: there is no result. Call {what}(model, ckpt_path=...) in a "
                "run of its own"
            )
        self.group.cut()
        self.group.destroy()
        self.group.form_local(host="", port=0, prefix="alone", rank=0, world_size=1)

    def signals(self) -> AbstractContextManager[None]:
        return graceful_signals(self.link.leaving)

    def send(self, event: Event) -> None:
        self.link.send(Happened(event=event.to_json()))

    def close(self) -> None:
        self.group.close()
        self.link.close()


class Packing(Enum):
    """Whether a member can send its state; the values travel."""

    NOT_YET = 0
    DONE = 1
    FAILED = 2


class PeerState:
    """Compare the members' positions, and send the state of the furthest to those behind. A `StateSource`.

    Rules that this class guards:

    * what users' code adds to the state is packed before the generation in which it was trained is given up;
    * a member that cannot pack goes on training: it is left out as a sender, and where no holder can send, joiners are
      refused by name, with the reason; nobody begins at another place than the run.
    """

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._snapshots = LiveSnapshots(link)
        self._parts: StateParts
        self._parcel: Parcel | None = None
        """What users' code makes of this worker's state, ready to be sent; `None` if it is not packed, or could not be."""
        self._problem = ""
        """Why it could not be packed."""

    def attach(self, parts: StateParts) -> None:
        self._parts = parts
        self._snapshots.attach(parts)

    def pack(self) -> None:
        parcel = Parcel()
        try:
            for name, part in training_state.dump_users(self._parts.trainer).items():
                parcel.add(name, part)
        except Exception as error:
            if isinstance(error, (GenerationBroken, RunAborted)) or is_communication_error(error):
                raise
            self._problem = f"{type(error).__name__}: {error}"[:1000]
            log.exception("this worker's state cannot be packed for others; training goes on without them")
        else:
            self._parcel = parcel

    def share(self, world: World) -> Resumption:
        parts = self._parts
        trainer, progress = parts.trainer, parts.progress
        try:
            positions, packings, hooks_done = self._compare()
            parts.rewind.agree_on_hooks(progress, parts.run_log, done=hooks_done)
            if progress.trained and max(positions).global_step > trainer.global_step:
                parts.rewind.undo.redo_step(trainer)
            first = not any(position.trained for position in positions)
            plan = choose_sources(positions)
            if first and world.generation.trained and (sources := self._snapshots.take_newest(world)) is not None:
                self._snapshots.entered(world, had_trained=True)
                return Resumption(first=True, resuming=progress.resuming, restored=True, sources=sources)
            resuming = not first
            if first:
                if len(set(positions)) == 1:
                    # No member has trained and all have loaded the same: DDP's broadcast of the weights is enough.
                    plan = replace(plan, sources={})
                parts.start_world.run_began = None  # a member that died in mid-transfer may have left its own
                box = [(training_state.dump_start(trainer), progress.loaded is not None)]
                dist.broadcast_object_list(box, src=plan.first_holder)
                start, resuming = box[0]
                training_state.load_start(trainer, start)
            if plan.sources:
                plan = self._choose_senders(world, plan, positions, packings)
            self._transfer(world, plan)
            progress.first_hooks_done = hooks_done  # of a newcomer, too
        finally:
            self._parcel, self._problem = None, ""
        self._snapshots.entered(world, had_trained=not first)
        return Resumption(first=first, resuming=resuming, restored=not first, sources=plan.sources)

    def _compare(self) -> tuple[list[Position], list[Packing], bool]:
        """Return every member's position, whether it has packed its state, and whether first hooks are left out.

        A collective.
        """
        mine = self._parts.progress.position(self._parts.trainer)
        phases = list(LoopPhase)
        # (world_size, 7)
        rows = gather_numbers(
            [
                *(int(mine.trained), mine.global_step, mine.batches_total, phases.index(mine.phase), mine.samples),
                int(self._parts.progress.first_hooks_done),
                self._packing.value,
            ],
        )
        positions = [
            Position(
                trained=bool(trained), global_step=step, batches_total=batches, phase=phases[phase], samples=samples
            )
            for trained, step, batches, phase, samples, *_ in rows
        ]
        hooks_done = hooks_are_done(positions, [bool(row[-2]) for row in rows])
        return positions, [Packing(row[-1]) for row in rows], hooks_done

    @property
    def _packing(self) -> Packing:
        if self._parcel is not None:
            return Packing.DONE
        return Packing.FAILED if self._problem else Packing.NOT_YET

    def _choose_senders(
        self, world: World, plan: ResumePlan, positions: Sequence[Position], packings: Sequence[Packing]
    ) -> ResumePlan:
        """Return the plan with senders that have packed their state. A collective.

        Raises `StateRefused` on joiners if there are none, and `GenerationBroken` on the other members.
        """
        if any(packings[holder] is Packing.NOT_YET for holder in plan.holders):  # after a failure
            if world.rank in plan.holders and self._packing is Packing.NOT_YET:
                with self._parts.trainer.strategy.alone():  # those behind run no hooks now
                    self.pack()
            packings = [Packing(value) for (value,) in gather_numbers([self._packing.value])]
        able = [holder for holder in plan.holders if packings[holder] is Packing.DONE]
        if able:
            return send_from(plan, able)
        joiners = [receiver for receiver in plan.receivers if not positions[receiver].trained]
        if not joiners:
            return plan  # laggards among the survivors have what users' code keeps, one step older
        names = ", ".join(world.sources[joiner] for joiner in joiners)
        cause = f"the state of the run could not be packed on {world.sources[plan.first_holder]}"
        if world.rank == plan.first_holder:
            # Before it is told: a joiner that has heard it ends, and its end may cut the others short of hearing it.
            log.error("%s may not join: %s (%s). Training goes on without", names, cause, self._problem)
        box = [self._problem]
        dist.broadcast_object_list(box, src=plan.first_holder)
        reason = f"{cause} ({box[0]})"
        if world.rank in joiners:
            raise StateRefused(
                f"this worker ({world.sources[world.rank]}) may not join: {reason}. The run goes on without it; "
                "mend the hook or state that fails, and resume the run from its last checkpoint"
            )
        raise GenerationBroken(f"{names} may not join: {reason}")

    def _transfer(self, world: World, plan: ResumePlan) -> None:
        """Send this worker's state to its receivers, or receive another's."""
        parts = self._parts
        receivers = [receiver for receiver, source in plan.sources.items() if source == world.rank]
        if receivers:
            parcel = self._parcel or self._without_hooks()
            parcel.add(
                "position",
                training_state.dump_position(parts.trainer, parts.progress)
                | {
                    "logged": dump_logged(parts.trainer),
                    "recent_log": parts.run_log.recent(),
                    "run_began": parts.start_world.run_began,
                },
            )
            for receiver in receivers:
                send_parcel(parcel, receiver)
        elif world.rank in plan.sources:
            received = receive_parcel(plan.sources[world.rank])
            state = received.pop("position") | received
            try:
                with parts.trainer.strategy.alone():  # the other members load nothing
                    parts.start_world.join(state["run_began"])
                    training_state.load_state(parts.trainer, parts.progress, state)
                    load_logged(parts.trainer, state["logged"])
            except Exception as error:
                if parts.progress.trained:
                    raise
                raise StateRefused(
                    f"this worker ({world.sources[world.rank]}) could not take over the run's state, and may not join: "
                    f"{type(error).__name__}: {error}. The run goes on without it"
                ) from error
            parts.run_log.adopt_recent(state["recent_log"])

    def _without_hooks(self) -> Parcel:
        """Return the state without what hooks add, which fail."""
        parcel = Parcel()
        for name, part in training_state.dump_users(self._parts.trainer, hooks=False).items():
            parcel.add(name, part)
        return parcel

    def at_boundary(self, step: int) -> None:
        self._snapshots.at_boundary(step)

    def before_weights_change(self) -> None:
        self._snapshots.wait_until_copied()

    def leave_behind(self, reason: str) -> None:  # noqa: ARG002  a snapshot's reason is one of three
        """Write a snapshot if no peer stays, or if none trains because the run pauses."""
        stop = self._link.stopping
        if self._link.waits or (stop is not None and stop.last):
            self._snapshots.leave_behind()

    def finished(self) -> None:
        self._snapshots.finished()

    def close(self) -> None:
        self._snapshots.close()
