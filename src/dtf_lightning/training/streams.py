"""Iterable data in a world that changes: a fixed number of streams, dealt to the ranks.

A data set says how many streams it has (`num_shards`) and gives each of them (`shard(num_shards=..., index=...)`), as
`datasets.IterableDataset` of Hugging Face does. Rules that this file guards:

* a stream yields the same samples in the same order whenever it is opened in an epoch, wherever: then a place in it is a
  number, and whoever takes a stream over goes on at exactly that place;
* how far each stream is committed is known to every rank at every step: it is agreed with the number of samples
  (`lightning/streams.py`), so that nobody's death takes it away;
* going on means: load the newest state that all ranks hold (`state_dict` / `load_state_dict`, shared every
  `share_every` batches), then draw and drop what was consumed since. Without states from the stream's beginning;
* what a DataLoader worker has drawn ahead is not consumed: counts and states travel with the batch that they belong to.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import IterableDataset, get_worker_info

SHARE_EVERY = 100
"""Batches between two sharings of states, if the data set has no `share_every` of its own."""


@runtime_checkable
class Streams(Protocol):
    """What an `IterableDataset` needs for an elastic run.

    Optional: `set_epoch(epoch)`; on what `shard` returns: `state_dict()` and `load_state_dict(state)`, so that taking a
    stream over does not mean reading it from its beginning.
    """

    num_shards: int
    """Streams; fixed for the run. More workers than that have nothing to read."""

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """The stream `index` of `num_shards`. Deterministic: the same samples in each epoch whoever opens it."""
        ...


@dataclass(frozen=True)
class Opening:
    """Where a stream is opened: at a state that was taken after `at` samples, then `skip` samples further."""

    at: int = 0
    state: Any = None
    skip: int = 0


@dataclass(frozen=True)
class Drawn:
    """A batch and what it is made of."""

    batch: Any
    counts: Mapping[int, int]
    """Stream to samples."""
    states: Mapping[int, Any]
    """Stream to its state behind this batch; empty for most batches."""


class StreamReader(IterableDataset[Drawn]):
    """One rank's streams as batches, in the process that reads them.

    Each DataLoader worker reads streams of its own and makes whole batches, one sample from each stream in turn.
    """

    def __init__(
        self,
        dataset: Any,
        openings: Mapping[int, Opening],
        *,
        epoch: int,
        batch_size: int,
        collate: Callable[[list[Any]], Any],
        drop_last: bool,
        share_every: int,
    ) -> None:
        self.dataset, self.openings, self.epoch = dataset, dict(openings), epoch
        self.batch_size, self.collate, self.drop_last = batch_size, collate, drop_last
        self.share_every = share_every

    def __iter__(self) -> Iterator[Drawn]:
        worker = get_worker_info()
        mine = sorted(self.openings)
        if worker is not None:
            mine = mine[worker.id :: worker.num_workers]
        streams = {index: self._open(index, self.openings[index]) for index in mine}
        running = deque(mine)
        number = 0
        while True:
            samples: list[Any] = []
            counts = dict.fromkeys(mine, 0)
            while running and len(samples) < self.batch_size:
                index = running[0]
                try:
                    samples.append(next(streams[index][1]))
                except StopIteration:
                    running.popleft()
                    continue
                counts[index] += 1
                running.rotate(-1)
            if not samples or (self.drop_last and len(samples) < self.batch_size):
                return
            number += 1
            states = {}
            if number % self.share_every == 0:
                states = {i: copy.deepcopy(s.state_dict()) for i, (s, _) in streams.items() if has_state(s)}
            yield Drawn(self.collate(samples), {i: count for i, count in counts.items() if count}, states)

    def stand_in(self) -> Any:
        """A batch for a rank that has nothing of its own, from the beginning of any stream; `None` if all are empty."""
        for index in range(self.dataset.num_shards):
            samples = list(islice(self._open(index, Opening())[1], self.batch_size))
            if samples:
                return self.collate(samples)
        return None

    def _open(self, index: int, opening: Opening) -> tuple[Any, Iterator[Any]]:
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        stream: Any = self.dataset.shard(num_shards=self.dataset.num_shards, index=index)
        if opening.state is not None:
            stream.load_state_dict(copy.deepcopy(opening.state))
        iterator = iter(stream)
        for _ in islice(iterator, opening.skip):
            pass
        return stream, iterator


def has_state(stream: Any) -> bool:
    """Whether it can say where it is, and go there."""
    return hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")
