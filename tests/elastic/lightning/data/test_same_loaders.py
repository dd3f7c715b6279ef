"""What the members of a generation compare of their loaders, and whom a difference concerns."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler, WeightedElasticSampler
from dtf_lightning.elastic.lightning.data.same_loaders import (
    _Described,
    describe_evaluation,
    describe_training,
    difference,
)

DATA = TensorDataset(torch.arange(12.0))


def described(sampler=None, **options):
    return describe_training(DataLoader(DATA, sampler=sampler or ElasticDistributedSampler(DATA), **options))


def test_the_same_loader_is_described_alike():
    assert described(batch_size=4) == described(batch_size=4, num_workers=2, pin_memory=True)


def test_what_decides_the_order_or_the_division_is_in_it():
    """One difference for each, and each is named."""
    usual = described(batch_size=4)
    others = {
        "batch_size": described(batch_size=3),
        "drop_last": described(batch_size=4, drop_last=True),
        "shuffle": described(ElasticDistributedSampler(DATA, shuffle=False), batch_size=4),
        "sampler's seed": described(ElasticDistributedSampler(DATA, seed=1), batch_size=4),
        "tail": described(ElasticDistributedSampler(DATA, tail="drop"), batch_size=4),
        "samples": described(ElasticDistributedSampler(DATA, num_samples=6), batch_size=4),
    }
    for name, other in others.items():
        told = difference("the training loader", [_Described("a", True, usual), _Described("b", False, other)])
        assert told.startswith(f"the training loader differs: {name} is {usual[name]} on a, {other[name]} on b.")


def test_the_order_of_a_sampler_of_ones_own_is_in_it():
    """Weights that differ make another order under the same settings."""
    one, same, other = (
        described(WeightedElasticSampler(DATA, weights), batch_size=4)
        for weights in ([1.0] * 12, [1.0] * 12, [1.0] * 11 + [9.0])
    )
    assert one == same
    assert {name for name in one if one[name] != other[name]} == {"order of samples (CRC-32)"}


def test_evaluation():
    loader = DataLoader(DATA, batch_size=5)
    assert describe_evaluation(loader) == {
        "loader": "DataLoader", "batch_size": "5", "batches": "3", "samples": "12",
    }  # fmt: skip
    assert describe_evaluation(iter([]))["batches"] == "unknown"


def test_no_difference():
    assert difference("x", [_Described("a", True, {"n": "1"}), _Described("b", False, {"n": "1"})]) == ""
