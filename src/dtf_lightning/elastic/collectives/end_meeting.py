"""`all_end_here` lets workers that leave the training loop see whether all do, before any of them enters another collective.

A worker that stops alone would meet the others' next all-reduce with a collective of an epoch's end, or a validation: where
the sizes differ, gloo ends the process. So they meet in the generation's store, which is no collective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.rules.stops import MAX_PATIENCE

if TYPE_CHECKING:
    import torch.distributed as dist

PATIENCE = 2 * MAX_PATIENCE
"""Seconds: longer than the leader takes to end the run of workers that have stopped apart."""


def all_end_here(
    store: dist.Store,
    batches: int,
    world_size: int,
    rank: int,
    *,
    look: Callable[[], object],
    patience: float = PATIENCE,
) -> bool:
    """Wait until all members have ended after as many batches; return false if they have not in `patience` seconds.

    The wait is a short one where all end together.

    Args:
        store: the generation's part of its store.
        batches: the number of batches that this worker has begun in the generation.
        look: called again and again; raises when the wait is in vain.

    Raises torch's `DistNetworkError` or `DistStoreError` when the store is gone, and what `look` raises.
    """
    store.set(f"ended/{batches}/{rank}", "")
    names = [f"ended/{batches}/{member}" for member in range(world_size)]

    def all_there() -> bool:
        look()
        return bool(store.check(names))

    try:
        return poll_until(all_there, patience, "all members to end")
    except TimeoutError:
        return False
