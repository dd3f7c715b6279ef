"""Exact evaluation: each sample once, and as many batches, none of them empty, on every rank."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.elastic.lightning.data.evaluation import EvaluationBatches, evaluate_once
from dtf_lightning.errors import SettingsError
from support.elastic.data_kinds import InStreams
from support.elastic.run_of_one import Data


def loader(size: int, rank: int = 0, world_size: int = 3, **arguments: Any) -> DataLoader:
    """As Lightning hands it to the strategy."""
    data = Data(size)
    sampler = DistributedSampler(data, num_replicas=world_size, rank=rank, shuffle=False)
    return DataLoader(data, **{"batch_size": 4, "sampler": sampler, **arguments})


@given(size=st.integers(1, 200), world=st.integers(1, 9), batch_size=st.integers(2, 9))
def test_each_sample_once_and_no_rank_waits(size, world, batch_size):
    size = max(size, world)
    ranks = [
        list(
            EvaluationBatches(
                SequentialSampler(range(size)), num_samples=size, batch_size=batch_size, rank=rank, world_size=world
            )
        )
        for rank in range(world)
    ]
    assert sorted(itertools.chain(*itertools.chain(*ranks))) == list(range(size))
    assert len({len(batches) for batches in ranks}) == 1
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loader(num_workers):
    """25 samples by 4 over three ranks: three batches on each, 25 in all; padded it would be 27."""
    loaders = [evaluate_once(loader(25, rank, num_workers=num_workers), rank=rank, world_size=3) for rank in range(3)]
    drawn = [[batch[0].tolist() for batch in made] for made in loaders]
    assert sorted(itertools.chain(*itertools.chain(*drawn))) == list(range(25))
    assert [len(made) for made in loaders] == [3, 3, 3]


def test_alone_it_stays_as_it_is():
    given_loader = loader(25, world_size=1)
    assert evaluate_once(given_loader, rank=0, world_size=1) is given_loader


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loader(25, batch_size=1), r"25 samples in batches of 1 .* 2 samples are evaluated twice"),
        (lambda: loader(2), r"2 samples in batches of 4 .* 1 samples are evaluated twice"),
        (lambda: loader(25, drop_last=True), "drop_last=True, so that some of its 25 samples are left out"),
        (lambda: DataLoader(InStreams(Data(25)), batch_size=4), "each of 3 workers evaluates all that it yields"),
        (lambda: loader(25, sampler=SequentialSampler(range(25))), "has a SequentialSampler; it stays as it is"),
        (
            lambda: DataLoader(Data(25), batch_sampler=type("Own", (BatchSampler,), {})(range(25), 2, drop_last=False)),
            r"makes batches of its own \(Own\)",
        ),
    ],
)
def test_what_cannot_be_exact_is_said(make, message):
    given_loader = make()
    with pytest.warns(UserWarning, match=message):
        assert evaluate_once(given_loader, rank=0, world_size=3) is given_loader


def test_unknown():
    with pytest.raises(SettingsError, match=r"ElasticCallback\(evaluation='twice'\): choose one of 'padded', 'exact'"):
        ElasticCallback(evaluation="twice")
