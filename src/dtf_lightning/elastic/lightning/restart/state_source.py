"""`SnapshotState` finds the newest state after a restart: snapshots, loaded checkpoints and the run's own checkpoints."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from dtf_lightning.elastic.lightning.restart.membership import RestartMembership
from dtf_lightning.elastic.lightning.restart.saved_states import SavedStates, dump, header, steady
from dtf_lightning.elastic.lightning.restart.snapshotter import Snapshotter
from dtf_lightning.elastic.lightning.run.policies import StateParts
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.snapshots.format import SnapshotHeader


class SnapshotState:
    """Share the newest intact state that the former lives of the run have left. A `StateSource`."""

    def __init__(self, membership: RestartMembership) -> None:
        self._membership = membership
        self._parts: StateParts
        """Parts of the training state; set by `attach`."""
        self._snapshotter: Snapshotter | None = None

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
        """Give all members the newest state. Raises what Lightning raises for a state that does not fit the model."""
        run, progress = self._membership.run, self._parts.progress
        saved = SavedStates(
            self._parts,
            run,
            rank=world.rank,
            gather=self._membership.gather,
            node=self._membership.welcome.node,
            lists=self._writes_for_node and self._membership.welcome.joiner,
        )
        choice = saved.take_newest(or_loaded=True)
        if choice is None:
            self._remember_life()
            return Resumption(first=True, resuming=progress.loaded is not None, restored=False)
        if self._writes_for_node:
            # A state that could not be read must not count as newer than one that is written from now on.
            run.node.forget_after(choice.position)
        self._remember_life()
        return Resumption(first=True, resuming=progress.resuming, restored=True, sources=saved.sources)

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
        """Remove what this node kept of the run."""
        run = self._membership.run
        if self._snapshotter is not None:
            self._snapshotter.close()
        if self._writes_for_node:
            run.node.remove(replace(run.record, finished=True, written_at=time.time()))

    def close(self) -> None:
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
