"""`SavedStates` finds the newest state that a run has saved, and gives it to all its workers.

Both modes go on from here where no living worker holds the state. All ranks go through the same rounds: they list the
states that each could give, choose the newest, and let its holders read it; if none of the holders can read it, they
leave it out and choose again. Then the ranks that have the state send it to the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dtf_lightning import environment
from dtf_lightning.elastic.checkpoints.staging import optimizer_tensors, storages_of
from dtf_lightning.elastic.collectives.state_transfer import receive_state, send_state
from dtf_lightning.elastic.data.random_numbers import seed_of, seed_process
from dtf_lightning.elastic.data.random_state import restore_random_state, take_random_state
from dtf_lightning.elastic.lightning.host.trainer import load_checkpoint
from dtf_lightning.elastic.lightning.restart.former_life import Misfit
from dtf_lightning.elastic.lightning.restart.membership import RestartedRun
from dtf_lightning.elastic.lightning.restart.offers import Read, checkpoint_folders, checkpoints, misfit, snapshots
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.lightning.run.policies import StateParts
from dtf_lightning.elastic.snapshots.choice import Choice, Offer, SourceKind, choose, senders
from dtf_lightning.elastic.snapshots.format import SnapshotDamaged, SnapshotHeader
from dtf_lightning.errors import DtfError, SettingsError

log = logging.getLogger("dtf_lightning")


def dump(parts: StateParts) -> dict[str, Any]:
    """Return the state that a snapshot holds, and that a newcomer gets; its tensors are references, not copies."""
    return training_state.dump_state(parts.trainer, parts.progress) | {
        "random": take_random_state(),
        "run_began": parts.start_world.run_began,
    }


def steady(parts: StateParts) -> set[int]:
    """Return the storages that only an optimizer step changes, and those of frozen parameters, which none does."""
    trainer = parts.trainer
    return storages_of([*trainer.lightning_module.parameters(), *optimizer_tensors(trainer.optimizers)])


def header(parts: StateParts, run: RestartedRun, reason: str, *, world_size: int) -> SnapshotHeader:
    """Return the header of a snapshot that is taken now."""
    return SnapshotHeader(
        instance=run.generation.instance,
        signature=run.signature,
        parts=run.parts,
        generation=run.generation.number,
        position=replace(parts.progress.position(parts.trainer), trained=False),
        world_size=world_size,
        reason=reason,
        local_rank=environment.local_rank(),
    )


class SavedStates:
    """Find and take over the newest intact state among those that the workers of one world can read.

    Args:
        parts: the parts of this worker's training state.
        run: the node's snapshots and records of the run.
        rank: this worker's rank.
        gather: returns every rank's object, in rank order; a collective.
        run_id: the run's id, for messages.
        node: the name of this worker's node.
        lists: whether this worker offers what its node has saved.
    """

    def __init__(
        self,
        parts: StateParts,
        run: RestartedRun,
        *,
        rank: int,
        gather: Callable[[Any], list[Any]],
        run_id: str,
        node: str,
        lists: bool,
    ) -> None:
        self._parts = parts
        self._run = run
        self._rank = rank
        self._gather = gather
        self._run_id = run_id
        self._node = node
        self._lists = lists
        self.sources: Mapping[int, int] = {}
        """Each rank that was sent the state, and the rank that sent it; known after `take_newest`."""

    def take_newest(self, *, or_loaded: bool) -> Choice | None:
        """Give all ranks the newest state; `None` if there is none to take. A collective.

        Args:
            or_loaded: whether what the ranks have loaded themselves counts; if nothing is newer, and all have loaded the
                same position, there is none to take.

        Raises `SettingsError` if the newest snapshot is one of another model, and what Lightning raises for a checkpoint
        that does not fit.
        """
        run, parts = self._run, self._parts
        known = dict.fromkeys((*run.record.checkpoint_folders, *checkpoint_folders(parts.trainer.callbacks)))
        run.record = replace(run.record, checkpoint_folders=tuple(known))
        readers = self._what_i_could_give(or_loaded=or_loaded)
        unfit: list[Misfit | None] = self._gather(misfit(run) if self._lists else None)
        while True:
            everyone: list[list[Offer]] = self._gather(list(readers))
            offers = [offer for offers in everyone for offer in offers]
            self._refuse_misfits([one for one in unfit if one is not None], offers)
            if not offers:
                return None
            choice = choose(offers)
            if choice.kind is SourceKind.LOADED and len(choice.offers) == len(everyone):
                return None
            state = self._read(choice, choice.offer_of(self._rank), readers)
            holders = [rank for rank, has in enumerate(self._gather(state is not None)) if has]
            if holders:
                break
            readers = {offer: read for offer, read in readers.items() if offer.worth != (choice.position, choice.kind)}
        self._take_over(choice, state, holders)
        return choice

    def _refuse_misfits(self, misfits: Sequence[Misfit], offers: Sequence[Offer]) -> None:
        """Raise `SettingsError` if a snapshot of another model is newer than anything that fits this one."""
        newest = max(misfits, key=lambda one: one.position, default=None)
        if newest is not None and all(offer.position < newest.position for offer in offers):
            raise SettingsError(newest.describe(self._run_id))

    def _what_i_could_give(self, *, or_loaded: bool) -> dict[Offer, Read]:
        """Return this rank's offers, each with its reader. A node's local rank 0 offers its snapshots and checkpoints."""
        parts, readers = self._parts, dict[Offer, Read]()
        if or_loaded:
            loaded = replace(parts.progress.position(parts.trainer), trained=False)
            offer = Offer(rank=self._rank, kind=SourceKind.LOADED, position=loaded)
            readers[offer] = lambda: training_state.dump_state(parts.trainer, parts.progress)
        if self._lists:
            for stored, read in snapshots(self._run, self._rank):
                readers.setdefault(stored, read)
            readers.update(checkpoints(self._run, self._rank, parts.trainer.callbacks))
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
                *(choice.kind.name.lower(), choice.position.global_step, self._node, error),
            )
            return None

    def _take_over(self, choice: Choice, state: dict[str, Any] | None, holders: list[int]) -> None:
        """Send the state to ranks that lack it, and load it; `progress.resuming` says whether an epoch goes on."""
        rank, trainer, progress = self._rank, self._parts.trainer, self._parts.progress
        self.sources = senders(holders, self._run.hosts)
        mine = choice.offer_of(rank) if state is not None else None
        writer = mine is not None and all(o.rank >= rank or o.where != mine.where for o in choice.offers)
        if state is None:
            state = receive_state(self.sources[rank])
        else:
            for receiver in (receiver for receiver, source in self.sources.items() if source == rank):
                send_state(state, receiver)
        random_state = state.pop("random", None)
        if state.get("run_began") is not None:
            self._parts.start_world.join(state["run_began"])
        if "progress" in state:
            # Loggers that number their versions have begun a new version, as always when Lightning resumes.
            state["start"]["logger_versions"] = [logger.version for logger in trainer.loggers]
            training_state.load_state(trainer, progress, state)
            progress.settle(trainer)
            progress.resuming = True
        else:
            load_checkpoint(trainer, state["checkpoint"])
            progress.resuming = progress.loaded is not None
            progress.go_to_loaded(trainer)
        if random_state is not None:
            restore_random_state(random_state)
            if not writer:
                # Each rank that did not write this state gets a random stream of its own, so that no two ranks have
                # the same dropout masks.
                seed_process(seed_of(torch.initial_seed(), int(torch.randint(2**62, ()).item()), rank))
            self._parts.rewind.undo.keep_random_state()
        if rank == 0:
            log.info(
                "goes on at step %d from %s: %s",
                *(
                    trainer.global_step,
                    choice.kind.name.lower(),
                    choice.offers[0].where or "what the ranks have loaded",
                ),
            )
