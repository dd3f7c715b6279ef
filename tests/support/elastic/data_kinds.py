"""The kinds of data that a run must keep count of, each over the same samples: shards and streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset

from dtf_lightning.elastic.data.shards import ShardedElasticDataset


class InShards(ShardedElasticDataset):
    """`source`, cut into shards of these sizes; remembers what it loaded."""

    def __init__(self, source: Dataset[Any], shard_sizes: list[int]) -> None:
        super().__init__(shard_sizes)
        self.source = source
        self.loaded: list[int] = []

    def load_shard(self, shard: int) -> list[int]:
        self.loaded.append(shard)
        return list(range(int(self.offsets[shard]), int(self.offsets[shard + 1])))

    def __getitem__(self, index: int) -> Any:
        return self.source[super().__getitem__(index)]


class InStreams(IterableDataset[Any]):
    """`source`, every `num_shards`-th sample in a stream, in another order each epoch.

    With `share_every` batches between two sharings of the streams' states; 0: the streams have none.
    """

    def __init__(self, source: Any, num_shards: int = 4, share_every: int = 2) -> None:
        self.source, self.num_shards, self.epoch = source, num_shards, 0
        self.share_every = share_every or 1
        self.kind = Stream if share_every else ForgetfulStream

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def shard(self, num_shards: int, index: int) -> IterableDataset[Any]:
        indices = range(index, len(self.source), num_shards)
        generator = torch.Generator().manual_seed(1000 * self.epoch + index)
        order = torch.randperm(len(indices), generator=generator).tolist()
        return self.kind(self.source, [indices[place] for place in order])

    def __iter__(self) -> Iterator[Any]:
        for index in range(self.num_shards):
            yield from self.shard(self.num_shards, index)


class ForgetfulStream(IterableDataset[Any]):
    """Always begins at its beginning."""

    def __init__(self, source: Any, indices: list[int]) -> None:
        self.source, self.indices, self.place = source, indices, 0

    def __iter__(self) -> Iterator[Any]:
        while self.place < len(self.indices):
            self.place += 1
            yield self.source[self.indices[self.place - 1]]


class Stream(ForgetfulStream):
    """Knows where it is."""

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]
