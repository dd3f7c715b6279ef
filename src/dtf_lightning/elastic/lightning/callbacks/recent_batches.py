"""`RecentBatches` knows which samples each of the last optimizer steps was trained on. Internal.

It watches the sampler of the training loader (`rollback.watch_samples`); without one it knows no samples.
"""

from __future__ import annotations

from collections import deque

from dtf_lightning.elastic.data.skipping_sampler import DrawnBatch, SkippingSampler


class RecentBatches:
    """The batches of this rank, the newest last. `memory`: number of batches that are kept."""

    def __init__(self, memory: int) -> None:
        self.sampler: SkippingSampler | None = None
        """The sampler that is watched."""
        self._batches: deque[tuple[int, DrawnBatch]] = deque(maxlen=memory)
        """(optimizer step that the batch is part of, batch)."""
        self._iteration = (-1, 0)
        """Number of the sampler's current iteration, and number of the current batch in it, starting at 0."""

    def watch(self, sampler: SkippingSampler | None) -> None:
        """Watch another sampler; `None` for none."""
        self.sampler, self._iteration = sampler, (-1, 0)

    def begins(self, step: int) -> None:
        """Note that the next batch is trained as part of the optimizer step `step`, which starts at 1."""
        sampler = self.sampler
        if sampler is not None:
            iteration, number = self._iteration
            number = number + 1 if iteration == sampler.num_iterations else 0
            self._iteration = (sampler.num_iterations, number)
            self._batches.append((step, sampler.batch(number)))

    def samples(self, first: int, last: int) -> list[int]:
        """Return the samples of the optimizer steps `first` to `last`, those that are no longer remembered excepted."""
        return [sample for step, batch in self._batches if first <= step <= last for sample in batch.samples()]
