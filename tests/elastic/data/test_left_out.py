"""What an epoch leaves out on purpose: what its loaders drop, or all that was left when it was cut short."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning import WeightedElasticSampler
from dtf_lightning.elastic.data.combined_loaders import CYCLES, MODES, Place
from dtf_lightning.elastic.data.left_out import LeftOut, Rest, left_out
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler


@pytest.mark.parametrize(
    ("unseen", "dropped", "cut_short", "expected"),
    [
        (0, 0, None, (0, "")),
        (0, 3, "a limit", (0, "")),
        (3, 3, None, (3, "dropped")),
        (3, 3, "a limit", (3, "dropped")),
        (7, 3, "a limit", (7, "a limit")),
        (7, 0, None, (0, "")),  # lost
        (7, 3, None, (3, "dropped")),  # 4 lost
        (None, 0, None, (0, "")),
        (None, 0, "a limit", (None, "a limit")),
    ],
)
def test_left_out(unseen, dropped, cut_short, expected):
    rest = Rest(size=None if unseen is None else 10, unseen=unseen, dropped=dropped, why_dropped="dropped")
    assert left_out(rest, cut_short) == LeftOut(number=expected[0], why=expected[1])


@given(
    size=st.integers(1, 40), cursor=st.integers(0, 40), per_batch=st.integers(1, 6), drop=st.booleans(),
    batches=st.integers(0, 12), mode=st.sampled_from(MODES),
)  # fmt: skip
def test_seen_is_what_batches_hold(size, cursor, per_batch, drop, batches, mode):
    """Batch by batch: those of the running pass count, what a cycle draws again does not."""
    cursor = min(cursor, size)

    def num_batches(left):
        return left // per_batch if drop else -(-left // per_batch)

    place = Place(
        cursor=cursor, again=False, size=size, per_batch=per_batch, left=num_batches(size - cursor),
        whole=max(1, num_batches(size)),
    )  # fmt: skip
    seen = set(range(cursor))
    for batch in range(min(batches, num_batches(size - cursor))):
        seen |= set(range(cursor + batch * per_batch, min(size, cursor + (batch + 1) * per_batch)))
    assert place.seen(batches) == len(seen)
    if mode == CYCLES and batches >= place.left:
        assert place.after(batches, mode)[1]


@given(cursor=st.integers(0, 20), epoch=st.integers(0, 3))
def test_unseen_by_any_order(cursor, epoch):
    """A shuffle holds each sample once; with weights some are never drawn, or more than once."""
    data = range(20)
    weights = torch.tensor([0.0, 1.0, 3.0, 1.0] * 5)
    samplers = [
        ElasticDistributedSampler(data),
        WeightedElasticSampler(data, weights, num_samples=12, replacement=False),
        WeightedElasticSampler(data, weights),
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert sampler.unseen(cursor) == 20 - len(set(sampler.order()[:cursor].tolist()))
