"""`SnapshotState` finds the newest state after a restart: snapshots, loaded checkpoints and the run's own checkpoints."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dtf_lightning.elastic.lightning.restart.membership import RestartMembership
from dtf_lightning.elastic.lightning.restart.saved_states import SavedStates, dump, header, steady
from dtf_lightning.elastic.lightning.restart.snapshotter import Snapshotter
from dtf_lightning.elastic.lightning.run.exits import WorkerStopped
from dtf_lightning.elastic.lightning.run.policies import StateParts
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.snapshots.format import SnapshotHeader
from dtf_lightning.elastic.snapshots.node import RunRecord
from dtf_lightning.errors import RunRefused

log = logging.getLogger("dtf_lightning")


class SnapshotState:
    """Share the newest intact state that the former lives of the run have left. A `StateSource`."""

    def __init__(self, membership: RestartMembership) -> None:
        self._membership = membership
        self._parts: StateParts
        """Parts of the training state; set by `attach`."""
        self._snapshotter: Snapshotter | None = None
        self._pid = os.getpid()

    @property
    def _writes_for_node(self) -> bool:
        """Whether this worker writes the state for its node, all of whose workers hold the same."""
        return self._membership.world.local_rank == 0

    def attach(self, parts: StateParts) -> None:
        self._parts = parts
        self._snapshotter = Snapshotter(
            self._dump,
            self._steady,
            self._header,
            self._membership.run.node,
            every_n_steps=parts.settings.snapshots.every_n_steps if self._writes_for_node else None,
        )

    # --- resuming ----------------------------------------------------------------------------------------------------

    def pack(self) -> None:
        """Do nothing: what others may need is written when this worker leaves."""

    def share(self, world: World) -> Resumption:
        """Give all members the newest state, or begin, where there is none, and say so.

        Raises `RunRefused` if the run has finished and its final state is gone, and what `SavedStates.take_newest` raises.
        """
        run, progress = self._membership.run, self._parts.progress
        saved = SavedStates(
            self._parts,
            run,
            rank=world.rank,
            gather=self._membership.gather,
            run_id=self._membership.welcome.run_id,
            node=self._membership.welcome.node,
            lists=self._writes_for_node and self._membership.welcome.joiner,
        )
        choice = saved.take_newest(or_loaded=True)
        step = self._parts.trainer.global_step
        if run.former is not None:
            self._look_for_loss(world, run.former, found=choice is not None)
        progress.ended = run.record.finished
        if progress.ended and world.rank == 0:
            log.warning(
                "run %r has finished, with %d steps: its workers were started anew (%s), and `fit` trains nothing more",
                *(self._membership.welcome.run_id, step, run.generation.reason),
            )
        if choice is None:
            self._remember_life()
            return Resumption(first=True, resuming=progress.loaded is not None, restored=False)
        if self._writes_for_node:
            # A state that could not be read must not count as newer than one that is written from now on.
            run.node.forget_after(choice.position)
        self._remember_life()
        return Resumption(first=True, resuming=progress.resuming, restored=True, sources=saved.sources)

    def _look_for_loss(self, world: World, former: RunRecord, *, found: bool) -> None:
        """Say that nothing of the former lives was found. Raises `RunRefused` if the final state of a finished run is lost."""
        membership, step = self._membership, self._parts.trainer.global_step
        run_id, places = membership.welcome.run_id, membership.run.node.places
        if former.finished and step < former.step:
            raise RunRefused(
                f"run {run_id!r} has finished, with {former.step} steps, and its workers were started anew by the same "
                f"torchrun; its final state is not kept on any of the nodes that are here (looked in {places}), so that "
                "they would have to train everything again. Start a new torchrun for a new run, or one of the script's "
                "rest alone, from a checkpoint"
            )
        if not found and world.rank == 0:
            log.warning(
                "run %r begins anew at step %d, in its life %d: no intact snapshot or checkpoint of its former lives is on "
                "any of the nodes that are here (looked in %s, and in its checkpoints' folders). "
                "ElasticCallback(snapshot_every_n_steps=...) keeps one for workers that are killed",
                *(run_id, step, membership.run.generation.number, places),
            )

    def _remember_life(self) -> None:
        if self._writes_for_node:
            self._membership.run.node.remember(self._membership.run.record)

    # --- writing snapshots ------------------------------------------------------------------------------------

    def at_boundary(self, step: int) -> None:
        if self._snapshotter is not None:
            self._snapshotter.at_boundary(step)

    def before_weights_change(self) -> None:
        if self._snapshotter is not None:
            self._snapshotter.wait_until_copied()

    def leave_behind(self, reason: str) -> None:  # noqa: ARG002  a snapshot's reason is one of three
        if self._snapshotter is not None:
            lost = self._membership.lost is not None
            self._snapshotter.last("a peer was lost" if lost else "stopped", self._parts.trainer.global_step)

    def finished(self) -> None:
        """Keep the final state until this process ends well: until then its workers may be started anew.

        Raises `WorkerStopped` if this worker was asked to stop meanwhile: they are.
        """
        run, trainer = self._membership.run, self._parts.trainer
        if self._snapshotter is not None:
            self._snapshotter.close()
        if self._writes_for_node:
            if self._snapshotter is not None:
                with trainer.strategy.alone():  # the other workers run no hooks now
                    self._snapshotter.last("finished", trainer.global_step)
            step, now = trainer.global_step, time.time()
            run.record = replace(run.record, finished=True, step=step, written_at=now)
            run.node.finish(run.record)
        if self._membership.stop.asked():  # the script's rest would be killed in its midst
            raise WorkerStopped(self._membership.stop.reason)
        atexit.register(self._process_ends)

    def _process_ends(self) -> None:
        """Remove the final state, unless this process ends by an exception, after which its agent may start it anew."""
        if os.getpid() != self._pid:
            return  # a process that the script has forked
        in_flight = sys.exc_info()[1]
        failed = in_flight is not None and not (isinstance(in_flight, SystemExit) and not in_flight.code)
        failed |= self._membership.stop.asked()
        if not failed and getattr(sys, "last_value", None) is None:
            self._membership.run.node.leave()

    def close(self) -> None:
        atexit.unregister(self._process_ends)
        if self._snapshotter is not None:
            self._snapshotter.close()
        with suppress(AttributeError):  # never attached to a trainer
            self._membership.run.node.close()

    def _dump(self) -> dict[str, Any]:
        return dump(self._parts)

    def _steady(self) -> set[int]:
        return steady(self._parts)

    def _header(self, reason: str) -> SnapshotHeader:
        membership = self._membership
        return header(self._parts, membership.run, reason, world_size=membership.world.world_size)
