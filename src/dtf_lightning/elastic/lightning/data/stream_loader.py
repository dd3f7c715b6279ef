"""`StreamLoader` loads iterable data; the ranks agree on every batch, so that all know what each stream has yielded.

One small all-reduce per batch adds up how many samples of which stream the ranks have drawn for it. From the sums follow
the weight of a rank's share (by its number of samples), the end of the epoch (when no rank has samples left) and,
without another message, every stream's committed position. A rank that has no samples left computes a stand-in batch of
weight 0.

Private API touched here: `_shutdown_workers_and_reset_iterator` (ends a loader's workers, as Lightning itself does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from dtf_lightning.elastic.collectives.gathering import gather_objects
from dtf_lightning.elastic.data.step_plans import BatchSettings
from dtf_lightning.elastic.data.streams import SHARE_EVERY, Drawn, StreamPlaces, StreamReader, Streams, has_state
from dtf_lightning.elastic.lightning.host.names import rank_zero_warn, shut_down_data_workers
from dtf_lightning.errors import SettingsError


class StreamLoader:
    """Replace the user's `DataLoader` over an `IterableDataset` that implements `Streams`.

    Raises `SettingsError` for a data set that has no streams, and for batch settings that need to know its length.
    """

    def __init__(self, loader: DataLoader[Any], settings: BatchSettings) -> None:
        _refuse(loader, settings)
        streams: Any = loader.dataset
        self.given = loader
        self.dataset = streams
        assert loader.batch_size is not None
        self.batch_size: int = loader.batch_size
        self.places = StreamPlaces(streams.num_shards)
        self.sampler = self  # Lightning calls `set_epoch` on it
        self.generator: torch.Generator | None = None
        """Random generator that seeds the loader's worker processes; `None` for torch's own."""
        self._iterator: Any = None
        """Iterator over the rank's streams; Lightning finds it under this name when it stops the worker processes."""

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch; the streams keep their positions if it is the current one."""
        self.places.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        shut_down_data_workers(self)
        places = self.places
        if not places.members:
            return iter(())  # in set-up there is no generation that could agree on a batch
        reader = StreamReader(
            self.dataset,
            places.openings(),
            epoch=places.epoch,
            batch_size=self.batch_size,
            collate=self.given.collate_fn,
            drop_last=self.given.drop_last,
            share_every=getattr(self.dataset, "share_every", SHARE_EVERY),
        )
        # Here and not at the first batch, like every DataLoader, because making an iterator draws a random number.
        self._iterator = iter(self._loader(reader))
        return self._agreed(reader, self._iterator, places.first)

    def _agreed(self, reader: StreamReader, batches: Iterator[Drawn], number: int) -> Iterator[Any]:
        places = self.places
        last: Any = None
        while True:
            drawn: Drawn | None = next(batches, None)
            # (num_streams,)
            counts = torch.zeros(places.num_streams, dtype=torch.int64)
            for stream, count in drawn.counts.items() if drawn is not None else ():
                counts[stream] = count
            dist.all_reduce(counts)
            if not places.agreed(number, drawn, counts.tolist()):
                return
            number += 1
            if number % reader.share_every == 0:
                places.share(gather_objects(places.states))
            if drawn is not None:
                last = drawn.batch
            elif last is None:
                last = reader.stand_in()
            yield last

    def _loader(self, reader: StreamReader) -> DataLoader[Any]:
        given = self.given
        # Not the user's class, because a StatefulDataLoader would keep states of its own beside those of `places`.
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
            "`shard(num_shards, index)` (see dtf_lightning.Streams; datasets.IterableDataset has both), "
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
    """Warn once what a rescale costs if streams have no state."""
    streams: Any = dataset
    if not has_state(streams.shard(num_shards=streams.num_shards, index=0)):
        rank_zero_warn(
            f"the streams of {type(dataset).__name__} have no state_dict and load_state_dict: after a rescale each is read "
            "again from the epoch's beginning up to where it was, and what was consumed is thrown away. No sample is "
            "lost or trained twice, but a rescale takes longer the later it comes."
        )
