"""Where a worker stands among the others, as values."""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.elastic.rules.generation import Generation

NO_GENERATION = Generation(number=0)


@dataclass(frozen=True, kw_only=True)
class World:
    """The generation that a worker is in, or was in last, and its place there.

    Before the first generation, rank and size are the agent's provisional ones and the generation's number is 0.
    """

    generation: Generation = NO_GENERATION
    rank: int
    """Starts at 0."""
    size: int
    """Workers."""
    formed: bool = False
    """The generation's process group is up; false in set-up, which uses a local group, and in a rescale."""
    first: bool = True
    """No member has trained before this generation: all run their `on_train_start` hooks together."""

    @property
    def workers(self) -> tuple[str, ...]:
        """A name for each rank, of a worker that keeps it for life; none in set-up, where ranks are provisional."""
        if not self.formed:
            return ()
        return tuple(
            f"{member.id}/{local}" for member in self.generation.members for local in range(member.num_workers)
        )

    @property
    def sources(self) -> tuple[str, ...]:
        """`node/local_rank` by rank: how event logs name the workers."""
        return tuple(
            f"{member.node}/{local}" for member in self.generation.members for local in range(member.num_workers)
        )


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """How a worker goes on after all members of a new generation have come to hold one state."""

    first: bool
    """`World.first`."""
    resuming: bool
    """The next pass through the epoch loop goes on at a position, instead of beginning an epoch."""
    restored: bool
    """All members hold the same weights already; false: they have those that each set up alone, and take rank 0's."""
