"""A distributed sampler whose world may change within an epoch: every sample of an epoch is drawn exactly once.

The global order of an epoch is a function of (seed, epoch) alone, never of the world's history. A cursor counts the
samples consumed by the whole world; with W ranks and a per-rank batch B the next step takes `order[cursor : cursor +
W * B]`, of which rank r takes every W-th. After a rescale the rest of the epoch, `order[cursor:]`, is divided anew.

Source of the idea: Elastic samplers of Horovod (`horovod/torch/elastic/sampler.py`) and torchft, both of which divide
the rest but lose or repeat the step in flight; here the cursor moves with committed optimizer steps only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data.distributed import DistributedSampler

from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Tail = Literal["pad", "drop"]
TAILS: tuple[Tail, ...] = ("pad", "drop")
_CHUNK = 4096
"""Indices that are turned into Python integers at a time: a whole epoch's list costs 60 ms per 400,000 samples."""


class ElasticDistributedSampler(DistributedSampler[Any]):
    """Draws every sample of an epoch exactly once, however the world changes meanwhile.

    It is a subclass of `DistributedSampler`, so that Lightning uses it unchanged.

    Args:
        dataset: any object with a length.
        num_replicas: the world size.
        rank: this worker's rank in the world.
        shuffle: whether each epoch has a new permutation, or the data set's own order.
        seed: the seed of the permutations, the same on all ranks.
        tail: what to do when the rest of an epoch does not divide by the world size: `pad` repeats at most
            `num_replicas - 1` samples of the epoch's beginning (Lightning's way), `drop` leaves at most as many out.
        num_samples: samples per epoch, for a subclass whose `make_order` gives another number than the data set has.

    Raises:
        SettingsError: unknown tail, an empty data set, or `num_samples` below 1; later: an order of another length.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        num_replicas: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        seed: int = 0,
        tail: Tail = "pad",
        num_samples: int | None = None,
    ) -> None:
        if tail not in TAILS:
            raise SettingsError(f"tail={tail!r} is unknown; choose one of {', '.join(map(repr, TAILS))}")
        if not isinstance(dataset, Sized) or len(dataset) == 0:
            raise SettingsError("an elastic sampler needs a data set with a length of at least 1")
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.tail: Tail = tail
        if num_samples is not None and num_samples < 1:
            raise SettingsError(f"{type(self).__name__}(num_samples={num_samples}): must be at least 1")
        self.dataset_size = len(dataset) if num_samples is None else num_samples
        """The number of samples per epoch."""
        self.cursor = 0
        """The number of samples of this epoch that the whole world has consumed."""
        self.done_here = 0
        """The samples that `len` adds for the batches before the last rescale, so that Lightning's batch counters
        stay right."""
        self.again = False
        """With several loaders: whether this epoch has been through the data once, so that what is left no longer
        counts."""
        self.cycled = False
        """With several loaders: whether an iteration that follows a whole one begins at sample 0."""
        self._begin = 0
        self.drawn: deque[int] | None = None
        """Indices in the order in which they were yielded, for the ledger; `None` while no ledger is kept."""
        self._not_padding = 0
        """The number of indices in `drawn` that are samples of the epoch; the rest, at the end, is padding."""
        self._order: tuple[int, torch.Tensor] | None = None

    def rebind(self, *, rank: int, num_replicas: int, epoch: int, cursor: int, done_here: int) -> None:
        """Set the sampler to a rank in a new world, at a position of an epoch."""
        self.rank, self.num_replicas = rank, num_replicas
        self.epoch, self.cursor, self.done_here = epoch, cursor, done_here
        self._begin, self.again = cursor, False

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the running one keeps its cursor."""
        if epoch != self.epoch:
            self.epoch, self.cursor, self.done_here = epoch, 0, 0
            self._begin, self.again = 0, False

    def order(self) -> torch.Tensor:
        """Return the epoch's global order. Shape (dataset_size,), int64; computed once per epoch."""
        if self._order is None or self._order[0] != self.epoch:
            order = torch.as_tensor(self.make_order(self.epoch), dtype=torch.int64)
            if order.shape != (self.dataset_size,):
                raise SettingsError(
                    f"{type(self).__name__}.make_order returned the shape {tuple(order.shape)} for epoch {self.epoch}; "
                    f"expected ({self.dataset_size},), one index per sample of the epoch (set num_samples otherwise)"
                )
            self._order = (self.epoch, order)
        return self._order[1]

    def adopt_order(self, other: ElasticDistributedSampler) -> None:
        """Take over the order that another sampler of the same data has computed: a permutation of 10M takes 0.5 s."""
        same_kind = type(self) is type(other) is ElasticDistributedSampler  # a subclass may make its own orders
        if same_kind and (self.dataset_size, self.seed, self.shuffle) == (
            other.dataset_size,
            other.seed,
            other.shuffle,
        ):
            self._order = other._order

    def make_order(self, epoch: int) -> torch.Tensor:
        """Return an epoch's samples in the order in which the whole world draws them. Shape (dataset_size,), int64.

        Override this for an order of your own (weights, buckets, a curriculum) and, if an epoch has another
        number of samples than the data set, pass `num_samples`. The result must depend on `self.seed` and the epoch
        only, never on the rank or the world: every rank computes it alone, and again after each rescale.
        """
        if not self.shuffle:
            return torch.arange(self.dataset_size)
        generator = torch.Generator()
        generator.manual_seed(self.seed + epoch)
        return torch.randperm(self.dataset_size, generator=generator)

    @property
    def own_order(self) -> bool:
        """Whether a subclass makes the orders, which may leave samples out or hold them more than once."""
        return type(self).make_order is not ElasticDistributedSampler.make_order

    def unseen(self, cursor: int) -> int:
        """Return how many samples of the data set the first `cursor` draws of the epoch do not hold."""
        if not self.own_order:
            return self.dataset_size - cursor
        dataset: Any = self.dataset
        return len(dataset) - len(torch.unique(self.order()[:cursor]))

    def take_drawn(self, count: int) -> tuple[list[int], int]:
        """Return the next `count` indices in the order in which they were drawn, and how many (at the end) are padding.

        `drawn` must be a deque before the iteration begins.
        """
        assert self.drawn is not None
        taken = [self.drawn.popleft() for _ in range(min(count, len(self.drawn)))]
        padding = max(0, len(taken) - self._not_padding)
        self._not_padding = max(0, self._not_padding - len(taken))
        return taken, padding

    def remaining(self, cursor: int | None = None) -> int:
        """Return the number of samples that the whole world draws from the cursor on, after padding or dropping."""
        left = max(0, self.dataset_size - (self.cursor if cursor is None else cursor))
        rest = left % self.num_replicas
        if self.tail == "drop":
            return left - rest
        return left + (self.num_replicas - rest if rest else 0)

    def __len__(self) -> int:
        return self.done_here + (0 if self.again else self.remaining() // self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        # (remaining,): the rest of the epoch, padded from its beginning, several times over if the data set is tiny
        begin = self._begin
        total = self.remaining(begin)
        rest = self.order()[begin : begin + total]
        while len(rest) < total:
            rest = torch.cat([rest, self.order()[: total - len(rest)]])
        # (remaining / num_replicas,): this rank's share
        mine = rest[self.rank :: self.num_replicas]
        if self.drawn is not None:
            self.drawn.clear()
            left = max(0, self.dataset_size - begin)
            self._not_padding = len(range(self.rank, min(left, total), self.num_replicas))
        for start in range(0, len(mine), _CHUNK):
            chunk = mine[start : start + _CHUNK].tolist()
            if self.drawn is None:
                yield from chunk
            else:
                for index in chunk:
                    self.drawn.append(index)
                    yield index
        if self.cycled:
            self._begin = 0


class WeightedElasticSampler(ElasticDistributedSampler):
    """`torch.utils.data.WeightedRandomSampler` for a world that changes: one draw for all ranks, divided anew.

    Args:
        dataset: any object with a length.
        weights: the weight of each sample; they need not sum to 1.
        num_samples: draws per epoch; `None`: as many as the data set has.
        replacement: whether a sample may be drawn more than once in an epoch, which `dtf audit` then shows as repeated.
        seed: the seed of the draws, the same on all ranks.

    Raises:
        SettingsError: weights of another number, below 0, not finite or all 0; more draws than samples with weight
            without replacement.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        weights: Sequence[float],
        *,
        num_samples: int | None = None,
        replacement: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(dataset, seed=seed, num_samples=num_samples)
        self.replacement = replacement
        # (len(dataset),)
        self.weights = torch.as_tensor(weights, dtype=torch.float64)
        length = len(dataset)  # type: ignore[arg-type]
        if self.weights.shape != (length,):
            raise SettingsError(
                f"weights have the shape {tuple(self.weights.shape)}; expected ({length},), one per sample"
            )
        if not bool(torch.isfinite(self.weights).all() & (self.weights >= 0).all() & (self.weights.sum() > 0)):
            raise SettingsError("weights must be finite, not below 0, and not all 0")
        drawable = int((self.weights > 0).sum())
        if not replacement and self.dataset_size > drawable:
            raise SettingsError(
                f"num_samples={self.dataset_size} without replacement, but only {drawable} samples have a weight; "
                "pass a smaller num_samples or replacement=True"
            )

    def make_order(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator()
        generator.manual_seed(self.seed + epoch)
        return torch.multinomial(self.weights, self.dataset_size, self.replacement, generator=generator)
