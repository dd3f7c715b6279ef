"""The places of several training loaders that are drawn from side by side (Lightning's `CombinedLoader`).

Every step draws one batch from each loader, so that each loader's place is a function of where it stood when the
generation began and of the batches since. In the mode `max_size_cycle` (what a list or dictionary of loaders gets) the
shorter loaders begin again until the longest is through, as in plain Lightning: their repeats belong to the mode.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CYCLES = "max_size_cycle"
MODES = ("max_size_cycle", "min_size", "max_size")
SHORTEST = "min_size"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one loader stands when a generation begins."""

    cursor: int
    """The number of samples of the running pass that the whole world has consumed."""
    again: bool
    """Whether a pass of this epoch is complete."""
    size: int
    """The number of samples of a whole pass."""
    per_batch: int
    """The number of samples that the whole world draws per batch."""
    left: int
    """The number of batches to the end of the running pass."""
    whole: int
    """The number of batches of a whole pass in this world."""

    def after(self, batches: int, mode: str) -> tuple[int, bool]:
        """Return (cursor, again) as they are after so many more batches."""
        if batches < self.left or mode != CYCLES:
            return min(self.size, self.cursor + batches * self.per_batch), self.again
        done = (batches - self.left) % self.whole
        return done * self.per_batch, True

    def seen(self, batches: int) -> int:
        """Return how many samples of the epoch's first pass are consumed after so many more batches."""
        if self.again:
            return min(self.size, self.whole * self.per_batch)
        return min(self.size, self.cursor + min(batches, self.left) * self.per_batch)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
