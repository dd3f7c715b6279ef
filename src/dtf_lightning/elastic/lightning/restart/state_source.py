"""`SnapshotState` finds the newest state after a restart: snapshots, loaded checkpoints and the run's own checkpoints.

All ranks go through the same rounds: they list the states that each could give, choose the newest, and let its holders
read it; if none of the holders can read it, they leave it out and choose again. Then the ranks that have the state send
it to the others.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from dtf_lightning.elastic.checkpoints.staging import optimizer_tensors, storages_of
from dtf_lightning.elastic.collectives.state_transfer import receive_state, send_state
from dtf_lightning.elastic.data.random_numbers import seed_of, seed_process
from dtf_lightning.elastic.data.random_state import restore_random_state, take_random_state
from dtf_lightning.elastic.lightning.host.trainer import load_checkpoint
from dtf_lightning.elastic.lightning.restart.membership import RestartMembership
from dtf_lightning.elastic.lightning.restart.offers import Read, checkpoint_folders, checkpoints, snapshots
from dtf_lightning.elastic.lightning.restart.snapshotter import Snapshotter
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.lightning.run.policies import StateParts
from dtf_lightning.elastic.lightning.run.world import Resumption, World
from dtf_lightning.elastic.snapshots.choice import Choice, Offer, SourceKind, choose, senders
from dtf_lightning.elastic.snapshots.format import SnapshotDamaged, SnapshotHeader
from dtf_lightning.errors import DtfError

log = logging.getLogger("dtf_lightning")


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
        known = dict.fromkeys((*run.record.checkpoint_folders, *checkpoint_folders(self._parts.trainer.callbacks)))
        run.record = replace(run.record, checkpoint_folders=tuple(known))
        readers = self._what_i_could_give(world.rank)
        while True:
            everyone: list[list[Offer]] = self._membership.gather(list(readers))
            choice = choose([offer for offers in everyone for offer in offers])
            if choice.kind is SourceKind.LOADED and len(choice.offers) == len(everyone):
                self._remember_life()
                return Resumption(first=True, resuming=progress.loaded is not None, restored=False)
            mine = choice.offer_of(world.rank)
            state = self._read(choice, mine, readers)
            holders = [rank for rank, has in enumerate(self._membership.gather(state is not None)) if has]
            if holders:
                break
            readers = {offer: read for offer, read in readers.items() if offer.worth != (choice.position, choice.kind)}
        sources = senders(holders, self._membership.run.hosts)
        resuming = self._take_over(world, choice, state, sources)
        if self._writes_for_node:
            # A state that could not be read must not count as newer than one that is written from now on.
            run.node.forget_after(choice.position)
        self._remember_life()
        return Resumption(first=True, resuming=resuming, restored=True, sources=sources)

    def _remember_life(self) -> None:
        if self._writes_for_node:
            self._membership.run.node.remember(self._membership.run.record)

    def _what_i_could_give(self, rank: int) -> dict[Offer, Read]:
        """Return this rank's offers, each with its reader. A node's local rank 0 offers its snapshots and checkpoints."""
        parts, run = self._parts, self._membership.run
        loaded = replace(parts.progress.position(parts.trainer), trained=False)
        offer = Offer(rank=rank, kind=SourceKind.LOADED, position=loaded)
        readers: dict[Offer, Read] = {offer: lambda: training_state.dump_state(parts.trainer, parts.progress)}
        if self._writes_for_node and self._membership.welcome.joiner:
            for stored, read in snapshots(run, rank):
                readers.setdefault(stored, read)
            readers.update(checkpoints(run, rank, parts.trainer.callbacks))
        return readers

    def _read(self, choice: Choice, mine: Offer | None, readers: dict[Offer, Read]) -> dict[str, Any] | None:
        """Return the chosen state if this rank has it and can read it, otherwise `None`."""
        if mine is None:
            return None
        try:
            return readers[mine]()
        except (OSError, SnapshotDamaged, DtfError) as error:
            log.warning(
                "%s of step %d on %s is damaged and not used, the next best source is: %s",
                *(choice.kind.name.lower(), choice.position.global_step, self._membership.welcome.node, error),
            )
            return None

    def _take_over(
        self, world: World, choice: Choice, state: dict[str, Any] | None, sources: Mapping[int, int]
    ) -> bool:
        """Send the state to ranks that lack it, load it, and tell whether training continues in mid-epoch."""
        rank, trainer, progress = world.rank, self._parts.trainer, self._parts.progress
        mine = choice.offer_of(rank) if state is not None else None
        writer = mine is not None and all(o.rank >= rank or o.where != mine.where for o in choice.offers)
        if state is None:
            state = receive_state(sources[rank])
        else:
            for receiver in (receiver for receiver, source in sources.items() if source == rank):
                send_state(state, receiver)
        random_state = state.pop("random", None)
        if state.get("run_began") is not None:
            self._parts.start_world.join(state["run_began"])
        if "progress" in state:
            # Loggers that number their versions have begun a new version, as always when Lightning resumes.
            state["start"]["logger_versions"] = [logger.version for logger in trainer.loggers]
            training_state.load_state(trainer, progress, state)
            progress.settle(trainer)
            resuming = True
        else:
            load_checkpoint(trainer, state["checkpoint"])
            resuming = progress.loaded is not None
            progress.go_to_loaded(trainer)
        if random_state is not None:
            restore_random_state(random_state)
            if not writer:
                # Each rank that did not write this state gets a random stream of its own, so that no two ranks have
                # the same dropout masks.
                seed_process(seed_of(torch.initial_seed(), int(torch.randint(2**62, ()).item()), rank))
            self._parts.undo.keep_random_state()
        if rank == 0:
            log.info(
                "goes on at step %d from %s: %s",
                *(
                    trainer.global_step,
                    choice.kind.name.lower(),
                    choice.offers[0].where or "what the ranks have loaded",
                ),
            )
        return resuming

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
        state = training_state.dump_state(self._parts.trainer, self._parts.progress)
        return state | {"random": take_random_state(), "run_began": self._parts.start_world.run_began}

    def _steady(self) -> set[int]:
        """Return the storages that only an optimizer step changes, and those of frozen parameters, which none does."""
        trainer = self._parts.trainer
        return storages_of([*trainer.lightning_module.parameters(), *optimizer_tensors(trainer.optimizers)])

    def _header(self, reason: str) -> SnapshotHeader:
        """Return the header of a snapshot that is taken now."""
        run, parts = self._membership.run, self._parts
        return SnapshotHeader(
            instance=run.generation.instance,
            signature=run.signature,
            generation=run.generation.number,
            position=replace(parts.progress.position(parts.trainer), trained=False),
            world_size=self._membership.world.world_size,
            reason=reason,
            local_rank=self._membership.world.local_rank,
        )
