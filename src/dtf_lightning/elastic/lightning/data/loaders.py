"""`make_elastic` gives a training loader an elastic sampler, and refuses data that cannot be divided again in mid-epoch.

Private API touched here: `_update_dataloader` (re-creates a loader with another sampler, as Lightning itself does).
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.shards import ShardedElasticDataset, ShardedElasticSampler
from dtf_lightning.elastic.data.step_plans import BatchSettings, ElasticBatchSampler
from dtf_lightning.elastic.data.virtual_plan import SeededDataset
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader
from dtf_lightning.elastic.lightning.host.names import remake_loader
from dtf_lightning.errors import SettingsError


def make_elastic(loader: Any, settings: BatchSettings) -> DataLoader[Any] | StreamLoader:
    """Return the loader with an `ElasticDistributedSampler` in place of its `DistributedSampler`.

    It also has an `ElasticBatchSampler` where steps are planned ahead; for iterable data it is a `StreamLoader`.

    Raises `SettingsError` for loaders whose order cannot be divided again in mid-epoch.
    """
    if isinstance(loader, StreamLoader) or isinstance(getattr(loader, "batch_sampler", None), ElasticBatchSampler):
        made_before: DataLoader[Any] | StreamLoader = loader  # Lightning puts it into the user's CombinedLoader
        return made_before
    _refuse_what_depends_on_the_world(loader, settings)
    if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
        return StreamLoader(loader, settings)
    if _is_stateful(loader):
        loader = _without_state(loader)
    _refuse_what_cannot_be_divided(loader)
    sampler = loader.sampler
    if not isinstance(sampler, ElasticDistributedSampler):
        tail: Any = "drop" if sampler.drop_last or settings.tail == "drop" else "pad"
        kind: Any = (
            ShardedElasticSampler if isinstance(loader.dataset, ShardedElasticDataset) else ElasticDistributedSampler
        )
        sampler = kind(loader.dataset, shuffle=sampler.shuffle, seed=sampler.seed, tail=tail)
    made: Any = remake_loader(loader, sampler)
    if settings.planned:
        # A DataLoader forbids this assignment once it is made, because an iterator may exist; here none exists yet.
        object.__setattr__(made, "batch_sampler", ElasticBatchSampler(sampler, loader.batch_size))
    if settings.virtual_ranks is not None:
        object.__setattr__(made, "dataset", SeededDataset(loader.dataset))
    # Lightning's `_Stateful` protocol: the position is saved with the callback's state, not with the loader's.
    made.state_dict = dict
    made.load_state_dict = lambda _: None
    remade: DataLoader[Any] = made
    return remade


def same_data(made: DataLoader[Any], loader: Any) -> bool:
    """Tell whether `make_elastic` made `made` from a loader over the same data set as `loader`."""
    data = made.dataset.dataset if isinstance(made.dataset, SeededDataset) else made.dataset
    return data is loader.dataset


def _is_stateful(loader: Any) -> bool:
    """Tell whether a loader is torchdata's `StatefulDataLoader`, which need not be installed."""
    return isinstance(loader, DataLoader) and any(
        kind.__module__.startswith("torchdata.") for kind in type(loader).__mro__
    )


def _without_state(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a plain `DataLoader`: the state of a stateful one is one rank's, in one world; ours is the whole world's."""
    batches: Any = loader.batch_sampler
    if not isinstance(batches, BatchSampler) or not type(batches).__module__.startswith(("torch.", "torchdata.")):
        return loader  # `make_elastic` refuses it
    sampler, dataset = batches.sampler, loader.dataset
    wrapped = _wrapped(sampler)
    # torchdata's own sampler, which Lightning does not recognize as a plain shuffle.
    if type(wrapped).__name__ == "RandomSampler" and not wrapped.replacement and len(wrapped) == len(dataset):  # type: ignore[arg-type]
        sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True)
    return DataLoader(
        dataset,
        # Lightning has made this loader from its batch sampler, whose class it does not recognize.
        batch_size=batches.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=batches.drop_last,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if loader.num_workers else None,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def num_batches_of_share(loader: DataLoader[Any], share: float) -> int:
    """Return the number of batches at which an epoch ends that uses a share of the data, e.g. 0.5, and was rescaled.

    These are the batches that the share has in the present world, less those that the present world would have needed
    for the samples consumed so far, plus those that are done; at least one more than are done, so that the hooks of the
    epoch's last batch run.
    """
    sampler: Any = loader.sampler
    assert loader.batch_size is not None
    cursor, done_here = sampler.cursor, sampler.done_here
    sampler.cursor = sampler.done_here = 0
    whole_epoch = len(loader)
    sampler.cursor, sampler.done_here = cursor, done_here
    consumed: int = cursor // (sampler.num_replicas * loader.batch_size)
    done: int = done_here // loader.batch_size
    return done + max(1, int(whole_epoch * share) - consumed)


def _refuse_what_depends_on_the_world(loader: Any, settings: BatchSettings) -> None:
    data = getattr(loader, "dataset", None)
    if settings.virtual_ranks is None or not isinstance(data, (IterableDataset, ShardedElasticDataset)):
        return
    kind = "streams" if isinstance(data, IterableDataset) else "shards"
    raise SettingsError(
        f"ElasticCallback(virtual_ranks={settings.virtual_ranks}): the samples of a step must not depend on the world, but "
        f"{kind} are dealt to the workers that there are, as those of {type(data).__name__}. Use a map-style data set "
        "without shards, or leave virtual_ranks out."
    )


def _wrapped(sampler: Any) -> Any:
    """Return the user's sampler inside Lightning's `DistributedSamplerWrapper`, or the sampler itself."""
    inner = getattr(getattr(sampler, "dataset", None), "_sampler", None)
    return sampler if inner is None else inner


def _refuse_what_cannot_be_divided(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise SettingsError(
            f"the training loader is a {type(loader).__name__}; an elastic run can divide the rest of an epoch anew "
            "only for a torch.utils.data.DataLoader over a data set with a length. Wrap the data in one."
        )
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        got = "no batch size" if loader.batch_sampler is None else f"a {type(loader.batch_sampler).__name__}"
        raise SettingsError(
            f"the training loader has {got} where a plain batch size is expected: the data decides itself "
            "what a batch is, so that the rest of an epoch cannot be divided anew. Pass "
            "DataLoader(batch_size=..., shuffle=True) instead, or give it sampler=ElasticDistributedSampler(dataset)."
        )
    sampler = loader.sampler
    # A subclass may order the samples in its own way; the order of ElasticDistributedSampler is known.
    if type(sampler) is not DistributedSampler and not isinstance(sampler, ElasticDistributedSampler):
        name = type(_wrapped(sampler)).__name__
        raise SettingsError(
            f"the training loader has the sampler {name}, whose order an elastic run does not know, so that it cannot "
            "be divided anew when the world changes. Use DataLoader(shuffle=True) or (shuffle=False) with "
            "Trainer(use_distributed_sampler=True), or sampler=ElasticDistributedSampler(dataset); for weights "
            "sampler=WeightedElasticSampler(dataset, weights), for an order of your own a subclass with make_order(epoch)."
        )
