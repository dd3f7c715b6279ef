"""The training loader of iterable data: every batch is agreed, so that all ranks know what each stream has yielded.

One small all-reduce per batch adds up how many samples of which stream the ranks have drawn for it. From it follow the
weight of a rank's share (uneven ones count by their samples), the end of the epoch (when nobody has anything left) and,
without another message, every stream's committed place. A rank that has nothing left computes a stand-in that weighs
nothing.

Private API touched here: `_shutdown_workers_and_reset_iterator` (ends a loader's workers, as Lightning itself does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils.data import DataLoader, IterableDataset

from dtf_lightning.errors import SettingsError
from dtf_lightning.training.batches import BatchSettings
from dtf_lightning.training.redistribution import GONE, carry_over, plan
from dtf_lightning.training.streams import SHARE_EVERY, Drawn, Opening, StreamReader, Streams, has_state


class StreamLoader:
    """In the place of the user's `DataLoader` over an `IterableDataset` that is `Streams`.

    Raises `SettingsError` for a data set that has no streams, and for batch settings that need to know its length.
    """

    def __init__(self, loader: DataLoader[Any], settings: BatchSettings) -> None:
        _refuse(loader, settings)
        self.given = loader
        self.dataset: Any = loader.dataset
        streams: Any = loader.dataset
        assert loader.batch_size is not None
        self.batch_size: int = loader.batch_size
        self.num_streams: int = streams.num_shards
        self.sampler = self  # Lightning calls `set_epoch` on it
        self.generator: torch.Generator | None = None
        """Seeds the loader's workers."""
        self.epoch = 0
        self.rank, self.world_size = 0, 1
        self.owners = np.full(self.num_streams, GONE, np.int64)
        self._members: list[str] = []
        self._places: dict[int, list[int]] = {0: [0] * self.num_streams}
        """Number of batches of the epoch to each stream's samples in them; since the last optimizer step and ahead."""
        self._shared: list[dict[int, tuple[int, Any]]] = []
        """What all ranks hold, oldest first: stream to (samples, state). Two of them: the newest may be ahead of what is
        committed."""
        self._own: dict[int, tuple[list[tuple[int, int]], int]] = {}
        """Batch to this rank's (stream, sample number in it), and the samples of all ranks."""
        self._iterator: Any = None
        """Over the rank's streams; under this name Lightning ends its workers when it tears the loader down."""

    # --- the place ---------------------------------------------------------------------------------------------------

    def bind(self, former: dict[str, Any] | None, *, members: list[str], rank: int, epoch: int, done: int) -> None:
        """Take this generation's streams.

        Args:
            former: `state_dict` of the generation before.
            members: the ranks' names, which nobody else ever has.
            rank: this worker's.
            epoch: that runs.
            done: its batches that are committed; 0 at its beginning.

        Raises:
            SettingsError: a data set with another number of streams, or a position that is not one of streams.
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
        self.epoch, self.rank, self.world_size, self._members = epoch, rank, len(members), members
        self._places, self._shared, self._own = {0: [0] * self.num_streams}, [], {}
        if former is not None:
            place = {name: new for new, name in enumerate(members)}
            moved = {old: place[name] for old, name in enumerate(former["members"]) if name in place}
            self.owners = carry_over(former["owners"], moved)
            if done:
                self._places = {done: former["places"][done]}
                self._shared = former["shared"]
        self.owners = plan(self.num_streams, self.world_size, before=self.owners).owners

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the running one keeps its place."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._places, self._shared, self._own = {0: [0] * self.num_streams}, [], {}

    def state_dict_of_streams(self) -> dict[str, Any]:
        """Not `state_dict`, which Lightning would take for a rank's own."""
        return {
            "epoch": self.epoch,
            "members": list(self._members),
            "owners": self.owners.tolist(),
            "places": dict(self._places),
            "shared": list(self._shared),
        }

    def forget_before(self, batch: int) -> None:
        """Nothing goes back behind this many batches of the epoch any more."""
        for number in [number for number in self._places if number < batch]:
            del self._places[number]
        for number in [number for number in self._own if number < batch]:
            del self._own[number]

    # --- a batch -----------------------------------------------------------------------------------------------------

    def samples_of(self, batch: int) -> int:
        """Of all ranks in a batch of the epoch (from 0); 0 behind its end."""
        return self._own[batch][1] if batch in self._own else 0

    def weight_of(self, batch: int) -> float:
        """What this rank's mean loss of the batch is multiplied by."""
        own, total = self._own.get(batch, ([], 0))
        return len(own) * self.world_size / total if total else 1.0

    def drawn_in(self, batch: int) -> list[int]:
        """Sample ids for the ledger: place in the stream times the number of streams, plus the stream."""
        own, _ = self._own.get(batch, ([], 0))
        return [place * self.num_streams + stream for stream, place in own]

    def __iter__(self) -> Iterator[Any]:
        _shutdown_workers_and_reset_iterator(self)
        # In set-up there is no generation yet with which a batch could be agreed.
        return self._iterate() if self._members else iter(())

    def _iterate(self) -> Iterator[Any]:
        number = min(self._places)
        mine = np.flatnonzero(self.owners == self.rank).tolist()
        reader = self._reader({stream: self._opening(stream, number) for stream in mine})
        batches = self._iterator = iter(self._loader(reader))
        states: dict[int, tuple[int, Any]] = {}
        last: Any = None
        while True:
            drawn: Drawn | None = next(batches, None)
            # (num_streams,)
            counts = torch.zeros(self.num_streams, dtype=torch.int64)
            for stream, count in drawn.counts.items() if drawn is not None else ():
                counts[stream] = count
            dist.all_reduce(counts)
            total = int(counts.sum())
            if total == 0:
                return
            before = self._places[number]
            after = [place + count for place, count in zip(before, counts.tolist(), strict=True)]
            own = []
            if drawn is not None:
                own = [(s, before[s] + i) for s, count in drawn.counts.items() for i in range(count)]
                states |= {stream: (after[stream], state) for stream, state in drawn.states.items()}
                last = drawn.batch
            elif last is None:
                last = reader.stand_in()
            self._own[number] = own, total
            number += 1
            self._places[number] = after
            if number % reader.share_every == 0:
                self._share(states)
            yield last

    def _share(self, states: dict[int, tuple[int, Any]]) -> None:
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, states)
        newest = dict(self._shared[-1]) if self._shared else {}
        for theirs in everyone:
            newest |= theirs
        self._shared = [*self._shared[-1:], newest]

    def _opening(self, stream: int, batch: int) -> Opening:
        place = self._places[batch][stream]
        known = [shared[stream] for shared in self._shared if stream in shared and shared[stream][0] <= place]
        at, state = known[-1] if known else (0, None)
        return Opening(at=at, state=state, skip=place - at)

    def _reader(self, openings: dict[int, Opening]) -> StreamReader:
        given = self.given
        return StreamReader(
            self.dataset,
            openings,
            epoch=self.epoch,
            batch_size=self.batch_size,
            collate=given.collate_fn,
            drop_last=given.drop_last,
            share_every=getattr(self.dataset, "share_every", SHARE_EVERY),
        )

    def _loader(self, reader: StreamReader) -> DataLoader[Any]:
        given = self.given
        # Not the user's class: a StatefulDataLoader would keep states of its own beside ours.
        return DataLoader(
            reader,
            batch_size=None,
            num_workers=given.num_workers,
            collate_fn=_as_it_is,
            pin_memory=given.pin_memory,
            timeout=given.timeout,
            worker_init_fn=given.worker_init_fn,
            multiprocessing_context=given.multiprocessing_context if given.num_workers else None,
            prefetch_factor=given.prefetch_factor,
            generator=self.generator,
        )


def _as_it_is(drawn: Any) -> Any:
    return drawn


def _refuse(loader: DataLoader[Any], settings: BatchSettings) -> None:
    dataset: Any = loader.dataset
    name = type(dataset).__name__
    if not isinstance(dataset, Streams) or dataset.num_shards < 1:
        raise SettingsError(
            f"the training data set {name} is an IterableDataset without streams: it has no order that could be divided "
            "anew when the world changes, samples would be lost or repeated. Give it `num_shards` and "
            "`shard(num_shards, index)` (see dtf_lightning.training.streams.Streams; datasets.IterableDataset has both), "
            "or use a map-style data set."
        )
    if loader.batch_size is None:
        raise SettingsError(
            f"the training loader over {name} has no batch size: the data decides itself what a batch is, so that nobody "
            "can count its samples. Let it yield samples, and pass DataLoader(batch_size=...)."
        )
    if settings.batch != "per_rank" or settings.tail not in (None, "exact"):
        raise SettingsError(
            f"{name} is an IterableDataset, of which nobody knows how much is left: only batch='per_rank' with tail='exact' "
            f"is possible; got batch={settings.batch!r}, tail={settings.tail!r}"
        )


def warn_of_rereading(dataset: IterableDataset[Any]) -> None:
    """Say once what a rescale costs where streams have no state."""
    streams: Any = dataset
    if not has_state(streams.shard(num_shards=streams.num_shards, index=0)):
        rank_zero_warn(
            f"the streams of {type(dataset).__name__} have no state_dict and load_state_dict: after a rescale each is read "
            "again from the epoch's beginning up to where it was, and what was consumed is thrown away. No sample is "
            "lost or trained twice, but a rescale takes longer the later it comes."
        )
