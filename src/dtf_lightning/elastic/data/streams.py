"""Iterable data in a world that changes: a fixed number of streams, which the ranks divide among themselves.

A data set says how many streams it has (`num_shards`) and gives each of them (`shard(num_shards=..., index=...)`), as
`datasets.IterableDataset` of Hugging Face does. Rules that this file guards:

* a stream yields the same samples in the same order whenever and wherever it is opened in an epoch: so a place in it is
  a number, and a worker that takes a stream over goes on at exactly that place;
* how far each stream is committed is known to every rank at every step: it is agreed with the number of samples
  (`elastic/lightning/data/stream_loader.py`), so that it is not lost with any worker;
* to go on means to load the newest state that all ranks hold (`state_dict` / `load_state_dict`, shared every
  `share_every` batches), then to draw and drop what was consumed since; without states, from the stream's beginning;
* what a DataLoader worker has drawn ahead is not consumed: counts and states travel with the batch they belong to.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from dtf_lightning.elastic.data.redistribution import GONE, carry_over, plan
from dtf_lightning.errors import SettingsError

SHARE_EVERY = 100
"""Batches between two exchanges of states, if the data set has no `share_every` of its own."""


@runtime_checkable
class Streams(Protocol):
    """What an `IterableDataset` needs for an elastic run.

    Optional: `set_epoch(epoch)`; and on what `shard` returns, `state_dict()` and `load_state_dict(state)`, so that a
    stream that is taken over need not be read from its beginning.
    """

    num_shards: int
    """The number of streams, fixed for the run. Workers beyond that number have nothing to read."""

    def shard(self, num_shards: int, index: int) -> Iterable[Any]:
        """Return stream number `index`; it must yield the same samples whenever and wherever an epoch opens it."""
        ...


@dataclass(frozen=True)
class Opening:
    """Where a stream is opened: at a state that was taken after `at` samples, then `skip` samples further."""

    at: int = 0
    state: Any = None
    skip: int = 0


class Drawn(NamedTuple):
    """A batch and what it is made of; a tuple, so that a DataLoader can pin its memory."""

    batch: Any
    counts: Mapping[int, int]
    """The number of samples from each stream."""
    states: Mapping[int, Any]
    """The state of each stream behind this batch; empty for most batches."""


class StreamReader(IterableDataset[Drawn]):
    """Reads one rank's streams as batches, in the process that it runs in.

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
        """Return a batch for a rank that has none, from the beginning of any stream; `None` if all are empty."""
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


class StreamPlaces:
    """Which rank reads which stream, and how far each was read; the same in every rank, but for what is only its own.

    Batches are numbered from the epoch's beginning, over all generations.
    """

    def __init__(self, num_streams: int) -> None:
        self.num_streams = num_streams
        self.epoch, self.rank = 0, 0
        self.members: list[str] = []
        """The names of the ranks; empty before the first generation."""
        # (num_streams,): rank of each stream's reader
        self.owners = np.full(num_streams, GONE, np.int64)
        self.states: dict[int, tuple[int, Any]] = {}
        """(samples, state) of each stream that this rank reads."""
        self._begin()

    def _begin(self) -> None:
        self._places: dict[int, list[int]] = {0: [0] * self.num_streams}
        """For a number of batches of the epoch, the samples of each stream in them; from the last optimizer step on,
        and ahead."""
        self._shared: list[dict[int, tuple[int, Any]]] = []
        """(samples, state) of each stream, as all ranks hold them, oldest first. Two of them: the newest may be
        ahead of what is committed."""
        self._own: dict[int, tuple[list[tuple[int, int]], int]] = {}
        """For each batch, this rank's samples as (stream, sample number in it), and the number of samples of all
        ranks."""
        self.states = {}

    def bind(self, former: dict[str, Any] | None, *, members: list[str], rank: int, epoch: int, done: int) -> None:
        """Give this rank its streams in a new generation.

        Args:
            former: the `state_dict` of the generation before.
            members: the ranks' names; no other worker ever has one of them.
            rank: this worker's rank.
            epoch: the running epoch.
            done: the epoch's batches that are committed; 0 at its beginning.

        Raises:
            SettingsError: another number of streams than the run has, or a position that is not one of streams.
        """
        if former is not None and len(former["owners"]) != self.num_streams:
            raise SettingsError(
                f"the run has {len(former['owners'])} streams, this worker's data set {self.num_streams}; num_shards "
                "must be the same on every node and in every world"
            )
        if done and (former is None or former["epoch"] != epoch or done not in former["places"]):
            raise SettingsError(
                "the position in mid-epoch is not one of streams, so that nobody knows how far each was read. Resume "
                "from a checkpoint of a run with the same data set, or of an epoch's end."
            )
        self.epoch, self.rank, self.members = epoch, rank, members
        self._begin()
        if former is not None:
            place = {name: new for new, name in enumerate(members)}
            moved = {old: place[name] for old, name in enumerate(former["members"]) if name in place}
            self.owners = carry_over(former["owners"], moved)
            if done:
                self._places = {done: former["places"][done]}
                self._shared = list(former["shared"])
        self.owners = plan(self.num_streams, len(members), before=self.owners).owners

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._begin()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which the next generation goes on, whichever batch is the last that is committed."""
        return {
            "epoch": self.epoch,
            "members": list(self.members),
            "owners": self.owners.tolist(),
            "places": dict(self._places),
            "shared": list(self._shared),
        }

    def openings(self) -> dict[int, Opening]:
        """Return where this rank opens each of its streams."""
        places, openings = self._places[self.first], {}
        for stream in np.flatnonzero(self.owners == self.rank).tolist():
            known = [shared[stream] for shared in self._shared if stream in shared]
            at, state = next(((a, s) for a, s in reversed(known) if a <= places[stream]), (0, None))
            openings[stream] = Opening(at=at, state=state, skip=places[stream] - at)
        return openings

    @property
    def first(self) -> int:
        """The first batch that is not committed, when a generation or an epoch begins."""
        return min(self._places)

    def agreed(self, batch: int, drawn: Drawn | None, counts: list[int]) -> bool:
        """Note the samples of each stream that all ranks together have drawn for a batch.

        Returns false if they have drawn none, because the epoch is over.

        Args:
            batch: the batch's number in the epoch.
            drawn: this rank's part; `None`: it has nothing left.
            counts: the samples of all ranks, per stream.
        """
        total = sum(counts)
        if total == 0:
            return False
        before = self._places[batch]
        after = [place + count for place, count in zip(before, counts, strict=True)]
        own: list[tuple[int, int]] = []
        if drawn is not None:
            own = [(s, before[s] + i) for s, count in drawn.counts.items() for i in range(count)]
            self.states |= {stream: (after[stream], state) for stream, state in drawn.states.items()}
        self._own[batch] = own, total
        self._places[batch + 1] = after
        return True

    def share(self, everyone: list[dict[int, tuple[int, Any]]]) -> None:
        """Note the states that all ranks have sent each other."""
        newest = dict(self._shared[-1]) if self._shared else {}
        for theirs in everyone:
            newest |= theirs
        self._shared = [*self._shared[-1:], newest]

    def forget_before(self, batch: int) -> None:
        """Forget what was known of batches before this one: no rank goes back behind it any more."""
        for number in [number for number in self._places if number < batch]:
            del self._places[number]
        for number in [number for number in self._own if number < batch]:
            del self._own[number]

    def samples_of(self, batch: int) -> int:
        """Return the number of samples of all ranks in a batch of the epoch; 0 behind its end."""
        return self._own[batch][1] if batch in self._own else 0

    def weight_of(self, batch: int) -> float:
        """Return the factor of this rank's mean loss of the batch, with which every sample of it weighs the same."""
        own, total = self._own.get(batch, ([], 0))
        assert total, f"batch {batch} is not agreed"
        return len(own) * len(self.members) / total

    def drawn_in(self, batch: int) -> list[int]:
        """Return sample ids for the ledger: place in the stream times the number of streams, plus the stream."""
        own, _ = self._own.get(batch, ([], 0))
        return [place * self.num_streams + stream for stream, place in own]


def has_state(stream: Any) -> bool:
    """Tell whether the stream can give its state, and be set to one."""
    return hasattr(stream, "state_dict") and hasattr(stream, "load_state_dict")
