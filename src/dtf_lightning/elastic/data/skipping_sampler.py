"""A sampler that leaves out samples that have ruined training, and that knows which samples each batch was made of.

The length of an epoch does not change: an excluded sample's place is given to another sample, chosen by the same
arithmetic on every rank. Loops, schedules and an elastic run's division of the epoch stay as they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sized
from typing import Any, NamedTuple

from torch.utils.data import Sampler


class DrawnBatch(NamedTuple):
    """The samples of one batch, as a range of all indices that were drawn."""

    drawn: array[int]
    start: int
    end: int

    def samples(self) -> list[int]:
        """Return the indices of the batch's samples."""
        return self.drawn[self.start : self.end].tolist()


class SkippingSampler(Sampler[int]):
    """Wraps the sampler of a batch sampler: `loader.batch_sampler.sampler = SkippingSampler(...)`.

    Args:
        sampler: the sampler that decides the order.
        dataset_size: the number of samples from which a substitute is chosen.
        batch_size: the batch size of this rank.
        excluded: indices of samples to leave out; shared, so that what is excluded later counts at once.
    """

    def __init__(self, sampler: Any, dataset_size: int, batch_size: int, excluded: set[int]) -> None:
        self.sampler = sampler
        self.dataset_size = dataset_size
        self.batch_size = batch_size
        self.excluded = excluded
        self.num_iterations = 0
        self._drawn = array("q")

    def __iter__(self) -> Iterator[int]:
        self.num_iterations += 1
        drawn = self._drawn = array("q")
        for index in self.sampler:
            chosen = self._substitute(index) if index in self.excluded else index
            drawn.append(chosen)
            yield chosen

    def __len__(self) -> int:
        return len(self.sampler) if isinstance(self.sampler, Sized) else self.dataset_size

    def __getattr__(self, name: str) -> Any:
        # Lightning looks for `set_epoch` and more on the sampler that it has put in.
        return getattr(self.__dict__["sampler"], name)

    def batch(self, number: int) -> DrawnBatch:
        """Return the `number`-th batch (from 0) of the running iteration; it stays valid when the next one begins."""
        return DrawnBatch(self._drawn, number * self.batch_size, (number + 1) * self.batch_size)

    def _substitute(self, index: int) -> int:
        # A substitute is far from its neighbours, which may be bad for the same reason; 7919 is coprime to most sizes.
        for attempt in range(1, self.dataset_size + 1):
            candidate = (index + attempt * 7919) % self.dataset_size
            if candidate not in self.excluded:
                return candidate
        return index


def exclude(excluded: set[int], samples: Iterable[int], dataset_size: int) -> int:
    """Exclude samples, but leave at least half of the data set; return how many were added."""
    before = len(excluded)
    for sample in samples:
        if len(excluded) >= dataset_size // 2:
            break
        excluded.add(sample)
    return len(excluded) - before
