"""`hold_at_the_end` lets `OneCycleLR` schedulers survive more optimizer steps than they were made for.

With `batch="per_rank"` an epoch has more optimizer steps in a smaller world, and `OneCycleLR` raises a `ValueError` at the
first step past its `total_steps`: the death of one worker would end the run hours later.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

log = logging.getLogger("dtf_lightning")

_told: weakref.WeakSet[LRScheduler] = weakref.WeakSet()
"""Schedulers that have warned; not an attribute of theirs, because all of a scheduler's `__dict__` is its state."""


class HeldOneCycleLR(OneCycleLR):
    """Keep the last learning rate at the end of the cycle, instead of raising `ValueError`."""

    def step(self, epoch: int | None = None) -> None:
        """Do what `OneCycleLR.step` does until `total_steps` are done; after that only warn once."""
        if epoch is not None or self.last_epoch < self.total_steps:
            super().step(epoch)
        elif self not in _told:
            _told.add(self)
            log.warning(
                "OneCycleLR(total_steps=%d) has come to its end and training has not: with batch='per_rank' a smaller "
                "world takes more steps. It keeps its last learning rate. ElasticCallback(batch='global') keeps the "
                "number of steps in every world.", self.total_steps,
            )  # fmt: skip


def hold_at_the_end(trainer: Any) -> None:
    """Let the trainer's schedulers continue past their number of steps. Idempotent."""
    for config in trainer.lr_scheduler_configs:
        _hold(config.scheduler)


def _hold(scheduler: Any) -> None:
    if type(scheduler) is OneCycleLR:
        scheduler.__class__ = HeldOneCycleLR
    for inner in getattr(scheduler, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        _hold(inner)
