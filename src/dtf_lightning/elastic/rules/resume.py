"""Chooses the training state that all workers go on with after a rescale, and who sends it to whom.

Rules that this file guards:

* the newest position wins: a step that any survivor has completed is kept, and never done again;
* trained members are at most one optimizer step apart, because a step needs all of them;
* a member that holds the newest state sends it, every other member receives it from exactly one holder.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import total_ordering
from typing import Any

from dtf_lightning.errors import ProtocolError


@total_ordering
class LoopPhase(Enum):
    """Where a worker is in Lightning's loop; at an equal number of finished batches, in the order of time."""

    ADVANCE_END = "advance_end"  # the batch is counted, the end of the epoch is not yet
    EPOCH_END = "epoch_end"  # in the hooks at the end of an epoch
    EPOCH_START = "epoch_start"  # in the hooks at the start of the next epoch
    BATCH = "batch"  # in the next batch
    DONE = "done"  # training has ended

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, LoopPhase):
            return NotImplemented
        order = list(LoopPhase)
        return order.index(self) < order.index(other)


@dataclass(frozen=True, order=True)
class Position:
    """How far a worker's training has come; a later field breaks ties of the earlier ones."""

    trained: bool = False
    """Whether the worker was in a generation of this run: what a newcomer has loaded never outranks its state."""
    global_step: int = 0
    """The number of committed optimizer steps."""
    batches_total: int = 0
    """The number of finished batches since the start of the run, over all epochs."""
    phase: LoopPhase = LoopPhase.EPOCH_START
    epoch: int = 0
    samples: int = 0
    """The number of samples of this epoch that committed optimizer steps have consumed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "trained": self.trained,
            "global_step": self.global_step,
            "batches_total": self.batches_total,
            "phase": self.phase.value,
            "epoch": self.epoch,
            "samples": self.samples,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Position:
        """Return the position that `to_json` wrote. Raises `ProtocolError` for anything else."""
        try:
            return cls(**{**data, "phase": LoopPhase(data["phase"])})
        except (TypeError, ValueError, KeyError) as error:
            raise ProtocolError(
                f"expected a position, got {data!r} ({error}); do all nodes run the same dtf-lightning?"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ResumePlan:
    """Which ranks send the newest state, and which receive it."""

    first_holder: int
    """The lowest rank that holds the newest state."""
    holders: tuple[int, ...]
    """The ranks that hold the newest state, in order."""
    receivers: tuple[int, ...]
    """The ranks that do not hold it, in order."""
    sources: Mapping[int, int]
    """Each receiver's sender, one of the holders; the receivers are spread evenly over them."""


def choose_sources(positions: Sequence[Position]) -> ResumePlan:
    """Choose the ranks whose state all ranks go on with. `positions[r]` is the position of rank r.

    Every trained member at the newest position is a holder. While nobody has trained, equal positions do not
    mean equal weights (initialisation may be unseeded): only the lowest rank at the newest position is a holder.

    Raises `ProtocolError` if trained members are more than one optimizer step apart, or two of them stand at the same
    step, batch and phase with different samples: then a step was done without its peers.
    """
    if not positions:
        raise ValueError("choose_sources needs the position of at least one rank, got none")
    newest = max(positions)
    trained = {rank: position for rank, position in enumerate(positions) if position.trained}
    for rank, position in trained.items():
        where = (position.global_step, position.batches_total, position.phase)
        same_place = where == (newest.global_step, newest.batches_total, newest.phase)
        if newest.global_step - position.global_step > 1 or (same_place and position != newest):
            raise ProtocolError(
                f"ranks disagree on how far training has come: rank {positions.index(newest)} is at {newest}, "
                f"rank {rank} at {position}; expected at most one optimizer step between them and equal samples at equal steps. "
                "A step was committed without its peers: this is a bug of dtf-lightning, or a rank skips collectives"
            )
    holders = tuple(rank for rank, position in enumerate(positions) if position == newest)
    if not trained:
        holders = holders[:1]
    receivers = tuple(rank for rank in range(len(positions)) if rank not in holders)
    sources = {receiver: holders[i % len(holders)] for i, receiver in enumerate(receivers)}
    return ResumePlan(first_holder=holders[0], holders=holders, receivers=receivers, sources=sources)


def hooks_are_done(positions: Sequence[Position], done: Sequence[bool]) -> bool:
    """Tell whether the first hooks of an epoch's end need not run again, because all who trained have completed them.

    `done[r]` says whether rank r has, and stands behind them. Where one has not, all run them again: they may have
    collectives, in which every member must take part. Newcomers leave them out where the others do.
    """
    newest = max(positions)
    trained = [rank for rank, position in enumerate(positions) if position.trained]
    return bool(trained) and all(done[rank] and positions[rank] == newest for rank in trained)


def send_from(plan: ResumePlan, able: Collection[int]) -> ResumePlan:
    """Return the plan with only those holders as senders that are `able` to send, at least one of them."""
    senders = [holder for holder in plan.holders if holder in able]
    sources = {
        receiver: senders[i % len(senders)] for i, receiver in enumerate(plan.receivers) if receiver in plan.sources
    }
    return replace(plan, sources=sources)
