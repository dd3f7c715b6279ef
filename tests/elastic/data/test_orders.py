"""Orders of the user's own: one order for the whole world, divided anew after each rescale."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from dtf_lightning import ElasticDistributedSampler, WeightedElasticSampler
from dtf_lightning.errors import SettingsError


class Buckets(ElasticDistributedSampler):
    """Samples of similar length follow each other: by their last digit."""

    def make_order(self, epoch):
        digits = torch.arange(self.dataset_size) % 10
        return torch.argsort((digits + epoch) % 10, stable=True)


def weighted(size):
    return WeightedElasticSampler(range(size), [1.0 + index for index in range(size)], seed=3)


@given(
    make=st.sampled_from([lambda size: Buckets(range(size)), weighted]),
    size=st.integers(1, 60),
    epoch=st.integers(0, 3),
    history=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), max_size=4),
)
def test_any_order_is_divided_anew(make, size, epoch, history):
    """Whatever worlds come, an epoch consumes its order once; only the last world's tail is padded."""
    consumed, cursor = [], 0
    for world, steps in [*history, (1, size)]:
        drawn = []
        for rank in range(world):
            sampler = make(size)
            assert isinstance(sampler, DistributedSampler), "or Lightning would wrap it"
            sampler.rebind(rank=rank, num_replicas=world, epoch=epoch, cursor=cursor, done_here=0)
            drawn.append(list(sampler))
        for step in range(min(steps, (size - cursor) // world)):
            consumed += [mine[step] for mine in drawn]
        cursor = len(consumed)
    reference = make(size)
    reference.set_epoch(epoch)
    assert consumed == reference.order().tolist()


def test_buckets_of_the_docs():
    """The example of docs/data-and-learning-rate.md: every sample once, a step's lengths alike, the same on all ranks."""
    page = Path(__file__).parents[3] / "docs" / "data-and-learning-rate.md"
    (code,) = re.findall(r"```python\n(class LengthBuckets.*?)```", page.read_text(), flags=re.DOTALL)
    names = {"torch": torch, "ElasticDistributedSampler": ElasticDistributedSampler}
    exec(code, names)
    lengths = [index * 7 % 100 for index in range(400)]
    ranks = [names["LengthBuckets"](range(400), lengths, pool=200) for _ in range(2)]
    for rank, sampler in enumerate(ranks):
        sampler.rebind(rank=rank, num_replicas=2, epoch=1, cursor=0, done_here=0)
    drawn = [list(sampler) for sampler in ranks]
    assert sorted(drawn[0] + drawn[1]) == list(range(400))
    steps = [[lengths[index] for mine in drawn for index in mine[begin : begin + 5]] for begin in range(0, 200, 5)]
    assert max(max(step) - min(step) for step in steps) <= 10


def test_weights_are_honoured():
    """Three times the weight, three times the draws; no weight, none. Another epoch, another draw; the same seed, the same."""
    sampler = WeightedElasticSampler(range(3), [3.0, 0.0, 1.0], num_samples=8000, seed=1)
    counts = Counter(sampler)
    assert counts[1] == 0
    assert counts[0] / counts[2] == pytest.approx(3, rel=0.15)
    assert len(sampler) == 8000
    again = WeightedElasticSampler(range(3), [3.0, 0.0, 1.0], num_samples=8000, seed=1)
    assert list(again) == list(sampler)
    again.set_epoch(1)
    assert list(again) != list(sampler)


def test_without_replacement_each_once():
    sampler = WeightedElasticSampler(range(50), [1.0] * 50, replacement=False)
    assert sorted(sampler) == list(range(50))


@pytest.mark.parametrize(
    ("weights", "arguments", "message"),
    [
        ([1.0], {}, r"weights have the shape \(1,\); expected \(2,\)"),
        ([1.0, -1.0], {}, "not below 0"),
        ([0.0, 0.0], {}, "not all 0"),
        ([1.0, float("inf")], {}, "finite"),
        ([1.0, 0.0], {"replacement": False}, "only 1 samples have a weight"),
        ([1.0, 1.0], {"num_samples": 0}, r"num_samples=0\): must be at least 1"),
    ],
)
def test_bad_weights(weights, arguments, message):
    with pytest.raises(SettingsError, match=message):
        WeightedElasticSampler(range(2), weights, **arguments)


def test_order_of_another_length():
    class Short(ElasticDistributedSampler):
        def make_order(self, epoch):
            return [0, 1]

    with pytest.raises(SettingsError, match=r"Short.make_order returned the shape \(2,\) for epoch 0; expected \(3,\)"):
        list(Short(range(3)))
