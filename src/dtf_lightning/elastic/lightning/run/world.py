"""These values describe a worker's place among the workers of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtf_lightning.elastic.rules.generation import Generation

NO_GENERATION = Generation(number=0)


@dataclass(frozen=True, kw_only=True)
class World:
    """Describe the generation that a worker is in, or was in last, and its rank there.

    Before the first generation, rank and size are provisional in live mode, and the generation's number is 0.
    """

    generation: Generation = NO_GENERATION
    rank: int
    """Rank of this worker, starting at 0."""
    size: int
    """Number of workers."""
    formed: bool = False
    """Whether the generation's process group exists; false in set-up, which uses another group, and in a rescale."""
    first: bool = True
    """Whether no member has trained before this generation: all run their `on_train_start` hooks together."""

    @property
    def workers(self) -> tuple[str, ...]:
        """Lasting name of the worker at each rank, in rank order; empty in set-up, where ranks are provisional."""
        if not self.formed:
            return ()
        return tuple(
            f"{member.id}/{local}" for member in self.generation.members for local in range(member.num_workers)
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """`node/local_rank` of each rank, in rank order: the names of workers in event logs."""
        return tuple(
            f"{member.node}/{local}" for member in self.generation.members for local in range(member.num_workers)
        )


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """Say how a worker continues after all members of a new generation have come to hold the same state."""

    first: bool
    """Value of `World.first`."""
    resuming: bool
    """Whether the next pass through the epoch loop continues at a position, instead of starting an epoch."""
    restored: bool
    """Whether all members hold the same weights; if not, each has those of its own set-up, and takes rank 0's."""
    sources: Mapping[int, int] = field(default_factory=dict)
    """Rank from which each rank that did not hold this state has received it; empty if nobody received anything."""
