"""Data in shards near the workers: each rank reads its own shards, and few shards move when the world changes.

Rules that this file guards:

* which shards a rank owns is planned (`redistribution.plan`): anew at the beginning of an epoch and after a rescale,
  always with few moves, by the samples that are left, so that a survivor keeps what it has cached;
* what is left of an epoch are pieces of shards. A rank draws its own shards' pieces, shard by shard; so that all ranks
  end together, the last samples of those that have more (at most about a shard's worth) go to those that have less;
* the division is a function of (the division before, samples consumed since): every rank computes the same, and what
  travels to joiners and into checkpoints is the division, whose size is the number of unfinished shards;
* the rest of the order is laid out so that the ranks' places in it (`order[rank::world]`) hold their own samples:
  steps, tails, roll-back and the ledger are those of every other order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from dtf_lightning.elastic.data.redistribution import GONE, carry_over, plan
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler, Tail
from dtf_lightning.errors import SettingsError

Integers = npt.NDArray[np.int64]


class ShardedElasticDataset(Dataset[Any], ABC):
    """A map-style data set in shards (files, archives, row groups) that keeps the shards that this process reads.

    Sample numbers run through the shards in order. Write `load_shard`, and use the data set in a
    `DataLoader(shuffle=True)`.

    Args:
        shard_sizes: the number of samples in each shard.
        num_cached: the most loaded shards that a process keeps, those used last; `None`: all that this worker owns,
            which needs DataLoader(num_workers=0): loader workers are not told of a new assignment, and would keep
            shards that have moved.

    Raises:
        SettingsError: no shards, an empty one, or `num_cached` below 1.
    """

    def __init__(self, shard_sizes: Sequence[int], *, num_cached: int | None = None) -> None:
        # (num_shards,)
        self.shard_sizes: Integers = np.asarray(shard_sizes, np.int64)
        if self.shard_sizes.ndim != 1 or len(self.shard_sizes) == 0 or self.shard_sizes.min() < 1:
            raise SettingsError(f"{type(self).__name__}: shard_sizes must be one number of at least 1 per shard")
        if num_cached is not None and num_cached < 1:
            raise SettingsError(f"{type(self).__name__}(num_cached={num_cached}): must be at least 1")
        # (num_shards + 1,): the first sample number of each shard, and the end
        self.offsets: Integers = np.concatenate([[0], np.cumsum(self.shard_sizes)])
        self.num_cached = num_cached
        self._loaded: OrderedDict[int, Any] = OrderedDict()

    @abstractmethod
    def load_shard(self, shard: int) -> Sequence[Any]:
        """Return the samples of a shard, from wherever they are; not called again while the result is kept."""

    def on_assignment(self, shards: list[int]) -> None:
        """Called with the shards that are this worker's from now on: those it will read, in order, then finished ones.

        Override it to fetch ahead or to tidy up. It runs in the training process, at each epoch's beginning and after
        each rescale. Keep the call to `super()`: it forgets the loaded shards that other workers own now.
        """
        for shard in set(self._loaded) - set(shards):
            del self._loaded[shard]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Return (shard, place in it) of a sample number."""
        shard = int(np.searchsorted(self.offsets, index, side="right")) - 1
        return shard, index - int(self.offsets[shard])

    def __getitem__(self, index: int) -> Any:
        shard, place = self.locate(index)
        if shard not in self._loaded:
            self._loaded[shard] = self.load_shard(shard)
            if self.num_cached is not None and len(self._loaded) > self.num_cached:
                self._loaded.popitem(last=False)
        self._loaded.move_to_end(shard)
        return self._loaded[shard][place]


class ShardedElasticSampler(ElasticDistributedSampler):
    """Draws each rank's samples from its own shards; the module's docstring has the rules.

    `ElasticCallback` puts it into the loader of a `ShardedElasticDataset`. By hand: `sampler=ShardedElasticSampler(dataset)`.
    """

    def __init__(
        self, dataset: ShardedElasticDataset, *, shuffle: bool = True, seed: int = 0, tail: Tail = "pad"
    ) -> None:
        super().__init__(dataset, shuffle=shuffle, seed=seed, tail=tail)
        self._sharded = dataset
        # (num_shards,): rank of each shard's owner
        self.owners: Integers = np.full(len(dataset.shard_sizes), GONE, np.int64)
        self._members: list[str] = []
        # (num_pieces, 4): rank, shard, begin and end in the shard; in the order in which the ranks draw them
        self._queue: Integers = np.empty((0, 4), np.int64)
        self._sizes: list[int] | None = None
        """The samples of each planned micro-batch, over all ranks; `None`: every rank takes every W-th sample."""
        self._began_at = 0
        """The cursor from which on this division holds."""
        self._shuffled: tuple[int, Integers] | None = None

    def settle(
        self,
        former: dict[str, Any] | None,
        *,
        members: list[str],
        in_epoch: bool,
        sizes: list[int] | None = None,
    ) -> None:
        """Divide the samples that are left among the ranks, after `rebind` has set the position.

        Args:
            former: the `state_dict` of the division before; `None`: there was none.
            members: the ranks' names; no other worker ever has one of them.
            in_epoch: whether training goes on in the former division's epoch.
            sizes: the samples of each planned micro-batch, over all ranks.

        Raises:
            SettingsError: within an epoch without a former division, or with one of other shards.
        """
        if former is not None and len(former["owners"]) != len(self.owners):
            raise SettingsError(
                f"the run has {len(former['owners'])} shards, this worker's data set {len(self.owners)}; every node "
                "must read the same data"
            )
        if in_epoch and self.cursor and (former is None or former["epoch"] != self.epoch):
            raise SettingsError(
                "the position in mid-epoch is not one of sharded data, so that nobody knows which samples of which "
                "shard are left. Resume from a checkpoint of a run with the same data set, or of an epoch's end."
            )
        if former is not None:
            place = {name: rank for rank, name in enumerate(members)}
            moved = {rank: place[name] for rank, name in enumerate(former["members"]) if name in place}
            self.owners = carry_over(former["owners"].numpy(), moved)
        self._members, self._sizes = members, sizes
        goes_on = in_epoch and former is not None and former["epoch"] == self.epoch
        self._divide(_remaining(former, self.cursor) if former is not None and goes_on else self._whole())

    def adopt_order(self, other: ElasticDistributedSampler) -> None:
        """Take over the shuffled shards that another sampler of the same data has computed."""
        if isinstance(other, ShardedElasticSampler) and (self.dataset_size, self.seed, self.shuffle) == (
            other.dataset_size,
            other.seed,
            other.shuffle,
        ):
            self._shuffled = other._shuffled

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            super().set_epoch(epoch)
            self._divide(self._whole())

    def state_dict(self) -> dict[str, Any]:
        """Return the division, from which that of the next world is computed: tensors, lists and numbers only."""
        return {
            "epoch": self.epoch,
            "began_at": self._began_at,
            "world_size": self.num_replicas,
            "members": list(self._members),
            "owners": torch.from_numpy(self.owners.copy()),
            "queue": torch.from_numpy(self._queue.copy()),
            "sizes": self._sizes,
        }

    def shards(self) -> list[int]:
        """Return this rank's shards: those that it reads in this epoch, in that order, then others that it owns."""
        reads = self._queue[self._queue[:, 0] == self.rank, 1].tolist()
        return list(dict.fromkeys(reads + np.flatnonzero(self.owners == self.rank).tolist()))

    def order(self) -> torch.Tensor:
        """Return the epoch's order.

        From the cursor on it is as this world draws it; before the cursor are samples to take padding from.
        """
        if self._order is None or self._order[0] != self.epoch:
            if not len(self._queue) and not self._members:
                self._members = [str(rank) for rank in range(self.num_replicas)]  # without ElasticCallback
                self._divide(self._whole())
            shuffled = self._make_shuffled()
            offsets = self._sharded.offsets
            drawn = [shuffled[offsets[s] + begin : offsets[s] + end] for _, s, begin, end in self._queue.tolist()]
            num_left = self.dataset_size - self._began_at
            owner = np.repeat(self._queue[:, 0], self._queue[:, 3] - self._queue[:, 2])
            rest = np.empty(num_left, np.int64)
            # The ranks' samples, rank by rank, go to the ranks' places, rank by rank.
            rest[np.argsort(_ranks(num_left, self.num_replicas, self._sizes), kind="stable")] = (
                np.concatenate(drawn)[np.argsort(owner, kind="stable")] if drawn else []
            )
            self._order = self.epoch, torch.from_numpy(np.concatenate([shuffled[: self._began_at], rest]))
        return self._order[1]

    def _whole(self) -> Integers:
        """Return every shard as one piece. Shape (num_shards, 3): shard, begin, end."""
        sizes = self._sharded.shard_sizes
        return np.stack([np.arange(len(sizes)), np.zeros_like(sizes), sizes], axis=1)

    def _divide(self, pieces: Integers) -> None:
        world, lengths = self.num_replicas, pieces[:, 2] - pieces[:, 1]
        weights = np.bincount(pieces[:, 0], lengths, len(self.owners))
        open_shards = np.flatnonzero(weights)
        uniform = len(open_shards) == 0 or weights[open_shards].min() == weights[open_shards].max()
        self.owners[open_shards] = plan(
            len(open_shards),
            world,
            before=self.owners[open_shards],
            weights=None if uniform else weights[open_shards].astype(np.float64),
        ).owners
        # (num_shards,): place of each shard in the epoch's order of shards
        place = np.arange(len(self.owners))
        if self.shuffle:
            place = np.random.default_rng([self.seed, self.epoch, 1]).permutation(len(self.owners))
        owner = self.owners[pieces[:, 0]]
        in_order = np.lexsort((pieces[:, 1], place[pieces[:, 0]], owner))
        queue = np.concatenate([owner[:, None], pieces], axis=1)[in_order]
        quotas = np.bincount(_ranks(int(lengths.sum()), world, self._sizes), minlength=world)
        self._queue = _even_out(queue, quotas)
        self._began_at, self._order = self.cursor, None
        if self._members:
            self._sharded.on_assignment(self.shards())

    def _make_shuffled(self) -> Integers:
        """Return all sample numbers, shuffled within each shard; a function of (seed, epoch). Shape (dataset_size,)."""
        if not self.shuffle:
            return np.arange(self.dataset_size)
        if self._shuffled is None or self._shuffled[0] != self.epoch:
            sizes = self._sharded.shard_sizes
            keys = np.random.default_rng([self.seed, self.epoch, 0]).random(self.dataset_size)
            shuffled = np.argsort(np.repeat(np.arange(len(sizes)), sizes) + keys, kind="stable")
            self._shuffled = self.epoch, shuffled
        return self._shuffled[1]


def _ranks(num_left: int, world_size: int, sizes: list[int] | None) -> Integers:
    """Return which rank draws each sample of the rest. Shape (num_left,)."""
    if sizes is None:
        return np.arange(num_left) % world_size
    planned = [np.arange(size) % world_size for size in sizes]
    left_out = num_left - sum(sizes)
    return np.concatenate([*planned, np.arange(left_out) % world_size])[:num_left]


def _remaining(former: dict[str, Any], cursor: int) -> Integers:
    """Return the pieces of a division that are left at a cursor. Shape (num_pieces, 3): shard, begin, end."""
    queue: Integers = former["queue"].numpy()
    num_left, world = int((queue[:, 3] - queue[:, 2]).sum()), former["world_size"]
    drawn_by = _ranks(num_left, world, former["sizes"])[: cursor - former["began_at"]]
    drawn = np.bincount(drawn_by, minlength=world).tolist()
    left = [_cut(mine, count)[1] for mine, count in zip(_by_rank(queue, world), drawn, strict=True)]
    pieces = np.concatenate(left)[:, 1:]
    return pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]


def _even_out(queue: Integers, quotas: Integers) -> Integers:
    """Give the end of each rank's queue that is over its quota to ranks that are under theirs."""
    cuts = [_cut(mine, quota) for mine, quota in zip(_by_rank(queue, len(quotas)), quotas.tolist(), strict=True)]
    pool = np.concatenate([over for _, over in cuts])
    evened = []
    for rank, (mine, _) in enumerate(cuts):
        given, pool = _cut(pool, int(quotas[rank] - (mine[:, 3] - mine[:, 2]).sum()))
        given[:, 0] = rank
        evened += [mine, given]
    return np.concatenate(evened)


def _by_rank(queue: Integers, world_size: int) -> list[Integers]:
    """Split a queue, which is sorted by rank, into one queue for each rank."""
    return np.split(queue, np.searchsorted(queue[:, 0], np.arange(1, world_size)))


def _cut(queue: Integers, count: int) -> tuple[Integers, Integers]:
    """Return the first `count` samples of a queue, and the rest; a piece may be cut in two."""
    lengths = queue[:, 3] - queue[:, 2]
    taken = np.clip(count - (np.cumsum(lengths) - lengths), 0, lengths)
    first, rest = queue.copy(), queue.copy()
    first[:, 3] = rest[:, 2] = queue[:, 2] + taken
    return first[taken > 0], rest[taken < lengths]
