"""Workers that leave the training loop see whether all do, without a collective."""

from __future__ import annotations

import threading

import pytest
import torch.distributed as dist

from dtf_lightning.elastic.collectives.end_meeting import all_end_here
from dtf_lightning.errors import GenerationBroken


def end(store: dist.Store, rank: int, batches: int, *, patience: float = 30.0, look=lambda: None) -> bool:
    return all_end_here(store, batches, 2, rank, patience=patience, look=look)


def test_all_end_together():
    """The first waits for the second; who comes again, at a later hook, does not wait."""
    store, found = dist.HashStore(), []
    first = threading.Thread(target=lambda: found.append(end(store, 0, 7)))
    first.start()
    assert end(store, 1, 7)
    first.join(30)
    assert found == [True]
    assert end(store, 0, 7, patience=0)


def test_another_ends_elsewhere():
    """One batch apart is apart."""
    store = dist.HashStore()
    assert not end(store, 0, 7, patience=0)
    assert not end(store, 1, 8, patience=0)


def test_news_end_the_wait():
    def look() -> None:
        raise GenerationBroken("generation 1 is broken")

    with pytest.raises(GenerationBroken):
        end(dist.HashStore(), 0, 7, look=look)
