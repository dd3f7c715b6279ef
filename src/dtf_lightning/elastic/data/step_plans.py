"""Plans how the rest of an epoch is divided into optimizer steps and micro-batches; uneven shares weigh what they hold.

Rules that this file guards:

* a plan is a function of (policy, samples left, world size, batch size): all ranks compute the same, without a
  collective;
* every sample that is left is in exactly one micro-batch, whatever the remainder, unless the tail is dropped;
* a step's gradient is the mean over its samples, as one process would compute it. Lightning divides a micro-batch's
  mean loss by the number of micro-batches A, DDP by the world size W; a rank's micro-batch of n samples in a step of G
  is therefore weighted by n * W * A / G;
* ranks run the same number of micro-batches: a rank without a sample computes a stand-in batch that weighs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from torch.utils.data import BatchSampler

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.virtual_plan import SeededBatch, VirtualPlan
from dtf_lightning.errors import SettingsError

log = logging.getLogger("dtf_lightning")

EpochTail = Literal["pad", "drop", "exact"]
EPOCH_TAILS: tuple[EpochTail, ...] = ("pad", "drop", "exact")


@runtime_checkable
class BatchPolicy(Protocol):
    """Decides how many samples the whole world puts into its next optimizer step.

    It must be a pure function of its arguments: every rank calls it by itself, and all must get the same answer.
    """

    def next_step(self, samples_left: int, world_size: int, batch_size: int) -> Sequence[int]:
        """Return the sizes of the step's micro-batches, over all ranks, for example (64, 64) for two accumulated ones.

        All steps of an epoch have the same number of micro-batches but the last, which may have fewer.

        Args:
            samples_left: samples left of the epoch, at least 1; the sizes' sum is at most this.
            world_size: the number of ranks, among which each micro-batch is divided as evenly as possible.
            batch_size: the loader's batch size, which a rank should not exceed.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PerRankBatch:
    """Plans `batch_size` samples per rank and micro-batch: a step grows and shrinks with the world."""

    accumulate: int = 1

    def next_step(self, samples_left: int, world_size: int, batch_size: int) -> list[int]:
        sizes = []
        for _ in range(self.accumulate):
            if samples_left > 0:
                sizes.append(min(samples_left, world_size * batch_size))
                samples_left -= sizes[-1]
        return sizes


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """Plans `size` samples per step in every world; each rank accumulates as many micro-batches as its share needs."""

    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SettingsError(f"GlobalBatch(size={self.size}): must be at least 1")

    def next_step(self, samples_left: int, world_size: int, batch_size: int) -> list[int]:
        total = min(self.size, samples_left)
        return split_evenly(total, -(-total // (world_size * batch_size)))


def split_evenly(total: int, parts: int) -> list[int]:
    """Return sizes that differ by at most one; the first `total % parts` are the larger ones."""
    return [total // parts + (index < total % parts) for index in range(parts)]


class StepPlan:
    """The plan of the rest of an epoch for one world: one entry per micro-batch.

    Raises `SettingsError` for a policy that takes no samples, more than there are, or changes the number of
    micro-batches before the last step.
    """

    def __init__(
        self, policy: BatchPolicy, *, samples_left: int, world_size: int, batch_size: int, drop_last: bool = False
    ) -> None:
        self.world_size = world_size
        self.sizes: list[int] = []
        """The number of samples of each micro-batch, over all ranks."""
        self.totals: list[int] = []
        """For each micro-batch, the number of samples of the step that it is part of."""
        self.accumulate = 0
        """The number of micro-batches per step; the last step may have fewer."""
        full, last = 0, 0
        while samples_left > 0:
            step = list(policy.next_step(samples_left, world_size, batch_size))
            total = sum(step)
            if not step or min(step) < 1 or total > samples_left:
                raise SettingsError(
                    f"batch policy {policy!r} returned {step} for {samples_left} samples left and {world_size} ranks; "
                    "it must return sizes of at least 1 whose sum is at most the samples left"
                )
            if (last and last != self.accumulate) or len(step) > (self.accumulate or len(step)):
                raise SettingsError(
                    f"batch policy {policy!r} returned steps of {self.accumulate}, then of other numbers of "
                    "micro-batches; only the last step of an epoch may have fewer"
                )
            self.accumulate, last, full = self.accumulate or len(step), len(step), max(full, total)
            if drop_last and total < full:
                break
            self.sizes += step
            self.totals += [total] * len(step)
            samples_left -= total
        self.accumulate = self.accumulate or 1

    def __len__(self) -> int:
        return len(self.sizes)

    def share(self, index: int, rank: int) -> int:
        """Return the number of samples of the micro-batch that this rank computes; 0: it computes a stand-in batch."""
        return len(range(rank, self.sizes[index], self.world_size))

    def drawn(self, index: int, rank: int) -> int:
        """Return the number of samples that the rank draws for the micro-batch; a stand-in batch has one."""
        return max(1, self.share(index, rank))

    def weight(self, index: int, rank: int) -> float:
        """Return the factor of the rank's mean loss of the micro-batch; the module's rules derive it."""
        return self.share(index, rank) * self.world_size * self.accumulate / self.totals[index]


class ElasticBatchSampler(BatchSampler):
    """Yields the batches of a `StepPlan`, from the sampler's order and place in the world."""

    sampler: ElasticDistributedSampler

    def __init__(self, sampler: ElasticDistributedSampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.plan: StepPlan | VirtualPlan | None = None
        self.batches_done = 0
        """The number of batches of the epoch before this world's."""
        self.seed_of_batch: Callable[[int], int] | None = None
        """With a `VirtualPlan`: gives the seed of the random numbers with which a micro-batch is read."""

    def __len__(self) -> int:
        return self.batches_done + len(self.plan or ())

    def __iter__(self) -> Iterator[Any]:
        assert self.plan is not None
        sampler, cursor = self.sampler, self.sampler.cursor
        if sampler.drawn is not None:
            sampler.drawn.clear()
        if isinstance(self.plan, VirtualPlan):
            yield from self._of_logical_ranks(self.plan)
            return
        for size in self.plan.sizes:
            # (size,), then (share,)
            batch = sampler.order()[cursor : cursor + size]
            mine = batch[sampler.rank :: sampler.num_replicas]
            indices = (mine if len(mine) else batch[:1]).tolist()
            cursor += size
            if sampler.drawn is not None:
                sampler.drawn.extend(indices)
            yield indices

    def _of_logical_ranks(self, plan: VirtualPlan) -> Iterator[SeededBatch]:
        sampler, cursor, seed_of_batch = self.sampler, self.sampler.cursor, self.seed_of_batch
        assert seed_of_batch is not None
        for index in range(len(plan)):
            positions = plan.positions(index, sampler.rank)
            # (share,)
            indices = SeededBatch(sampler.order()[cursor + positions.start : cursor + positions.stop].tolist())
            indices.seed = seed_of_batch(index)
            if sampler.drawn is not None:
                sampler.drawn.extend(indices)
            yield indices


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """The settings `batch`, `global_batch`, `tail` and `virtual_ranks` of `ElasticCallback`.

    Raises `SettingsError` for an unknown policy or tail, and for arguments that contradict each other.
    """

    batch: Literal["per_rank", "global"] | BatchPolicy = "per_rank"
    global_batch: int | None = None
    """Samples per step of `"global"`; `None`: as many as the first generation's step has."""
    tail: EpochTail | None = None
    """`None` means `"pad"` for `"per_rank"` and `"exact"` for all others."""
    virtual_ranks: int | None = None
    """The number of logical ranks that define training in any world; `None`: the workers define it."""

    def __post_init__(self) -> None:
        if self.tail is not None and self.tail not in EPOCH_TAILS:
            known = ", ".join(map(repr, EPOCH_TAILS))
            raise SettingsError(f"ElasticCallback(tail={self.tail!r}): choose one of {known}")
        if self.batch not in ("per_rank", "global") and not isinstance(self.batch, BatchPolicy):
            raise SettingsError(
                f"ElasticCallback(batch={self.batch!r}): choose 'per_rank', 'global', or pass an object with "
                "next_step(samples_left, world_size, batch_size), see dtf_lightning.BatchPolicy"
            )
        if self.global_batch is not None and self.batch != "global":
            raise SettingsError(
                f"ElasticCallback(global_batch={self.global_batch}) needs batch='global'; got batch={self.batch!r}"
            )
        if self.global_batch is not None and self.global_batch < 1:
            raise SettingsError(f"ElasticCallback(global_batch={self.global_batch}): must be at least 1")
        self._check_virtual_ranks()
        if self.batch != "per_rank" and self.tail == "pad":
            raise SettingsError(
                f"ElasticCallback(batch={self.batch!r}, tail='pad'): its last step is weighted by samples and needs no padding; "
                "use tail='exact' or 'drop'"
            )

    def _check_virtual_ranks(self) -> None:
        number = self.virtual_ranks
        if number is None:
            return
        if type(number) is not int or number < 1:
            raise SettingsError(f"ElasticCallback(virtual_ranks={number!r}): must be a whole number of at least 1")
        if self.batch != "per_rank" or self.global_batch is not None:
            raise SettingsError(
                f"ElasticCallback(virtual_ranks={number}, batch={self.batch!r}): virtual ranks fix the samples of a step, "
                f"{number} times the loader's batch size, in every world. Remove batch and global_batch."
            )
        if self.tail == "pad":
            raise SettingsError(
                f"ElasticCallback(virtual_ranks={number}, tail='pad'): a short last step is weighted by samples and needs "
                "no padding; use tail='exact' or 'drop'"
            )

    @property
    def planned(self) -> bool:
        """Whether steps are weighted by samples, instead of padded or cut to the same size on every rank."""
        return self.batch != "per_rank" or self.tail == "exact" or self.virtual_ranks is not None

    def fingerprint(self) -> dict[str, str]:
        """Return the settings that must be the same on every node, by name."""
        return {
            "ElasticCallback(batch)": self.batch if isinstance(self.batch, str) else type(self.batch).__qualname__,
            "ElasticCallback(global_batch)": str(self.global_batch),
            "ElasticCallback(tail)": str(self.tail),
            "ElasticCallback(virtual_ranks)": str(self.virtual_ranks),
        }

    def policy(self, *, accumulate: int, first_step: int) -> BatchPolicy:
        """Return the policy that the settings name.

        Args:
            accumulate: the user's number of micro-batches per step.
            first_step: the samples in a step of the run's first generation.
        """
        if self.batch == "per_rank":
            return PerRankBatch(accumulate=accumulate)
        if self.batch == "global":
            return GlobalBatch(size=self.global_batch or first_step)
        return self.batch


def check_world(policy: BatchPolicy, *, world_size: int, beginning: bool) -> None:
    """Refuse a global batch smaller than the world.

    Raises `SettingsError` when a run begins; later, when the world has grown, it is a warning.
    """
    if not isinstance(policy, GlobalBatch) or policy.size >= world_size:
        return
    text = f"global_batch={policy.size} is smaller than the world of {world_size} ranks"
    if beginning:
        raise SettingsError(f"{text}: some would have nothing to do. Raise it, or start fewer workers.")
    log.warning("%s: %d of them compute nothing that counts", text, world_size - policy.size)
