"""`evaluate_once` makes validation and test loaders that evaluate every sample once, in any world.

This is `ElasticCallback(evaluation="exact")`. Lightning's `DistributedSampler` repeats up to world size - 1 samples so
that all ranks have the same number, and metrics count these samples twice. Here the samples are split evenly over the
batches, and each batch over the ranks:

* every rank has the same number of batches and at least one sample in each, so that a metric that synchronizes at every
  step meets its peers;
* this needs a batch size of at least 2 and at least as many samples as ranks. Otherwise, and for loaders whose order is
  not known here, the loader stays Lightning's, and a warning says which samples it repeats.

Private API touched here: `_update_dataloader` (re-creates a loader, as Lightning itself does).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset

from dtf_lightning.elastic.data.step_plans import split_evenly
from dtf_lightning.elastic.lightning.host.names import rank_zero_warn, remake_loader
from dtf_lightning.errors import SettingsError

Evaluation = Literal["padded", "exact"]
EVALUATIONS: tuple[Evaluation, ...] = ("padded", "exact")


def check_evaluation(evaluation: str) -> None:
    """Raise `SettingsError` for an unknown way of evaluation."""
    if evaluation not in EVALUATIONS:
        known = ", ".join(map(repr, EVALUATIONS))
        raise SettingsError(f"ElasticCallback(evaluation={evaluation!r}): choose one of {known}")


class EvaluationBatches(BatchSampler):
    """Yield this rank's part of each batch, as sample numbers.

    Args:
        sampler: draws the whole data set, as a single process would.
        num_samples: number of samples that it draws; at least `world_size`.
        batch_size: largest number of samples per rank and batch; at least 2.
        rank: rank of this worker, starting at 0.
        world_size: number of ranks.
    """

    def __init__(self, sampler: Any, *, num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.rank, self.world_size = rank, world_size
        self.sizes = split_evenly(num_samples, -(-num_samples // (world_size * batch_size)))

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.sampler)
        begin = 0
        for size in self.sizes:
            yield order[begin : begin + size][self.rank :: self.world_size]
            begin += size


def evaluate_once(loader: Any, *, rank: int, world_size: int) -> Any:
    """Return the loader with `EvaluationBatches`, or unchanged after a warning about what it repeats or leaves out."""
    if world_size == 1:
        return loader
    problem = _problem(loader, world_size)
    if problem:
        rank_zero_warn(f"evaluation='exact': {problem}")
        return loader
    given = loader.sampler
    whole: Any = DistributedSampler(
        loader.dataset, num_replicas=1, rank=0, shuffle=given.shuffle, seed=given.seed, drop_last=False
    )
    made: Any = remake_loader(loader, given)
    batches = EvaluationBatches(
        whole, num_samples=len(loader.dataset), batch_size=loader.batch_size, rank=rank, world_size=world_size
    )
    # A DataLoader forbids this assignment once it is made, because an iterator may exist; here none exists yet.
    object.__setattr__(made, "batch_sampler", batches)
    return made


def _problem(loader: Any, world_size: int) -> str:
    """Return why the loader cannot be divided exactly; empty if it can."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        what = loader.dataset if isinstance(loader, DataLoader) else loader
        return (
            f"{type(what).__name__} has no length and no order; each of {world_size} workers evaluates all that it "
            "yields there. Use a map-style data set."
        )
    if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
        return (
            f"the evaluation loader makes batches of its own ({type(loader.batch_sampler).__name__}); it stays as it is "
            "and repeats what it repeats. Pass DataLoader(batch_size=...)."
        )
    if type(loader.sampler) is not DistributedSampler:
        return (
            f"the evaluation loader has a {type(loader.sampler).__name__}; it stays as it is and repeats what it "
            "repeats. Leave the sampler to Lightning (Trainer(use_distributed_sampler=True))."
        )
    sized: Any = loader.dataset
    length = len(sized)
    if loader.drop_last:
        return f"the evaluation loader says drop_last=True, so that some of its {length} samples are left out"
    if loader.batch_size == 1 or length < world_size:
        return (
            f"{length} samples in batches of {loader.batch_size} cannot be divided so that each of {world_size} "
            f"workers has something in every batch; {-length % world_size} samples are evaluated twice. Use a batch "
            "size of at least 2 and at least as many samples as workers."
        )
    return ""
