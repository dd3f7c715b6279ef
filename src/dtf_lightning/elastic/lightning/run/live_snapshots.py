"""`LiveSnapshots` keeps a live run's state for the case that nobody is left who holds it.

Rules that this file guards:

* a run that has trained never begins anew in silence: those who hold no state go on from the newest snapshot or
  checkpoint of the run, or wait for somebody who has one;
* the agents know that a run has trained as soon as its loss would be one: once a step is made that no snapshot in
  writing is to cover;
* the last member that leaves writes a snapshot into its node's memory and into the run's folder.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dtf_lightning import environment
from dtf_lightning.elastic.collectives.gathering import gather_objects
from dtf_lightning.elastic.lightning.checks.fingerprint import parameter_signature
from dtf_lightning.elastic.lightning.restart.membership import RestartedRun, describe_model
from dtf_lightning.elastic.lightning.restart.offers import checkpoint_folders
from dtf_lightning.elastic.lightning.restart.saved_states import SavedStates, dump, header, steady
from dtf_lightning.elastic.lightning.restart.snapshotter import Snapshotter
from dtf_lightning.elastic.lightning.run.exits import StopForRescale
from dtf_lightning.elastic.lightning.run.policies import StateParts
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.snapshots.format import SnapshotHeader
from dtf_lightning.elastic.snapshots.node import NodeSnapshots, RunRecord, agent_name, last_record, run_key
from dtf_lightning.errors import RunRefused

if TYPE_CHECKING:
    from dtf_lightning.elastic.link.worker_link import WorkerLink

HOLDER_PATIENCE = 1.0
"""Number of `rescale_timeout`s that members without a state wait for a node that has the run's: as long as a join may take."""


class LiveSnapshots:
    """Save the state of one worker of a live run, and find what others have saved.

    Args:
        link: the connection to this node's agent.
    """

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._parts: StateParts
        """Parts of the training state; set by `attach`."""
        self._world: World
        """The world that this worker is in, or was in last; set by `entered`."""
        self._run: RestartedRun | None = None
        """What this node keeps of the run; made when something is to be written or found."""
        self._snapshotter: Snapshotter | None = None
        self._began_at: int | None = None
        """The step at which this worker began to train; `None` before."""
        self._told = False
        """Whether the agent knows that the run has trained."""
        self._gives_up_at: float | None = None
        """When this worker waits no longer for a member that holds the state, in monotonic seconds."""

    def attach(self, parts: StateParts) -> None:
        """Bind to the parts of the training state."""
        self._parts = parts

    # --- finding -----------------------------------------------------------------------------------------------------

    def take_newest(self, world: World) -> Mapping[int, int] | None:
        """Give all members the newest state that the run has saved; none of them holds it. A collective.

        Returns the rank that has sent the state to each rank which received it; `None` where nothing is saved, and nobody has ever
        heard of a step.

        Raises:
            StopForRescale: nothing is saved where these members can read it, and the world changes.
            GenerationBroken, RunAborted: the same, and a member failed, or the run was ended.
            RunRefused: the same, and nobody came who has it, for as long as a join may take.
        """
        run = self._open(world)
        saved = SavedStates(
            self._parts,
            run,
            rank=world.rank,
            gather=gather_objects,
            run_id=self._link.welcome.run_id,
            node=self._link.welcome.node,
            lists=self._writes_for_node,
        )
        choice = saved.take_newest(or_loaded=False)
        if choice is None and world.generation.presumed:
            return None
        if choice is None:
            self._await_holder(world)
        elif self._writes_for_node:
            run.node.forget_after(choice.position)  # what could not be read must not count as newer
        return saved.sources

    def _await_holder(self, world: World) -> None:
        timeout = HOLDER_PATIENCE * self._link.welcome.rescale_timeout
        if self._gives_up_at is None:  # over all generations: each that breaks would begin to wait anew
            self._gives_up_at = time.monotonic() + timeout
        if self._link.await_stop(max(0.0, self._gives_up_at - time.monotonic())):
            raise StopForRescale
        raise RunRefused(
            f"run {self._link.welcome.run_id!r} had trained, and nobody is left who holds its state: no member has survived "
            f"({world.generation.reason}), none of the {len(world.generation.members)} nodes that are here finds an intact "
            f"snapshot or checkpoint of it, in memory, in {self._parts.settings.snapshots.folder} or in {self._parts.run_dir}, and "
            f"none that has one came within {timeout:g} s. Begin it anew at step 0 with --rdzv-conf fresh=true, or start it "
            "from a checkpoint of yours (ckpt_path) under another --rdzv-id; ElasticCallback(snapshot_every_n_steps=...) "
            "keeps a state for such a case"
        )

    # --- keeping -----------------------------------------------------------------------------------------------------

    def entered(self, world: World, *, had_trained: bool) -> None:
        """Take note that this worker holds the state of this world. `had_trained`: steps were made in it before."""
        self._world, self._gives_up_at = world, None
        if self._run is not None:
            self._run.generation = world.generation
        if had_trained:
            self._tell()
        if self._parts.settings.snapshots.every_n_steps is not None and self._writes_for_node:
            self._ready_to_write()

    def at_boundary(self, step: int) -> None:
        """Take note that this worker continues after a boundary between two optimizer steps."""
        if self._snapshotter is not None:
            self._snapshotter.at_boundary(step)
        if self._told:
            return
        if self._began_at is None:
            self._began_at = step
        elif step > self._began_at and (self._snapshotter is None or self._snapshotter.idle):
            self._tell()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            self._link.trained()

    def wait_until_copied(self) -> None:
        """Wait until weights may change."""
        if self._snapshotter is not None:
            self._snapshotter.wait_until_copied()

    def leave_behind(self) -> None:
        """Write the state for those who come: this worker leaves, and no member stays."""
        if self._writes_for_node:
            self._ready_to_write().last("stopped", self._parts.trainer.global_step, on_disk_too=True)

    def finished(self) -> None:
        """Remove what is kept of the run."""
        self.close()
        if self._writes_for_node:
            key, settings = self._key(self._world), self._parts.settings.snapshots
            NodeSnapshots.discard(settings, key=key, run_dir=self._parts.run_dir)

    def close(self) -> None:
        """Release files and threads. Idempotent."""
        if self._snapshotter is not None:
            self._snapshotter.close()
        if self._run is not None:
            self._run.node.close()
        self._snapshotter = self._run = None

    # --- steps of the above ------------------------------------------------------------------------------------------

    @property
    def _writes_for_node(self) -> bool:
        """Whether this worker writes and lists for its node, all of whose workers hold the same."""
        return environment.local_rank() == 0

    def _key(self, world: World) -> str:
        return run_key(self._link.welcome.run_id, {"instance": world.generation.instance}, agent="")

    def _open(self, world: World) -> RestartedRun:
        """Return what this node keeps of the run, with the world as it is now."""
        generation, trainer = world.generation, self._parts.trainer
        if self._run is not None:
            self._run.generation, self._run.hosts = generation, _hosts(world)
            return self._run
        node = NodeSnapshots(
            self._parts.settings.snapshots, key=self._key(world), run_dir=self._parts.run_dir, agent=agent_name()
        )
        record = last_record(node.records()) or RunRecord(
            instance=generation.instance, generation=generation.number, written_at=time.time()
        )
        self._run = RestartedRun(
            node=node,
            record=record,
            generation=generation,
            hosts=_hosts(world),
            parts=describe_model(parameter_signature(trainer.lightning_module), trainer.optimizers),
        )
        return self._run

    def _ready_to_write(self) -> Snapshotter:
        run = self._open(self._world)
        if self._snapshotter is None:
            folders = dict.fromkeys(
                (*run.record.checkpoint_folders, *checkpoint_folders(self._parts.trainer.callbacks))
            )
            run.record = replace(run.record, checkpoint_folders=tuple(folders))
            run.node.remember(run.record)
            every = self._parts.settings.snapshots.every_n_steps
            self._snapshotter = Snapshotter(
                lambda: dump(self._parts), self._steady, self._header, run.node, every_n_steps=every, at_start=True
            )
        return self._snapshotter

    def _steady(self) -> set[int]:
        return steady(self._parts)

    def _header(self, reason: str) -> SnapshotHeader:
        assert self._run is not None
        return header(self._parts, self._run, reason, world_size=self._world.size)


def _hosts(world: World) -> list[str]:
    """Return the host of each rank, in rank order."""
    return [member.host for member in world.generation.members for _ in range(member.num_workers)]
