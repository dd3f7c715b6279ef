"""The same place, the same numbers; other places, others."""

from __future__ import annotations

import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.data.random_numbers import loader_generator, seed_of, seed_process

PLACES = st.tuples(*[st.integers(0, 10**9)] * 5)


@given(one=PLACES, other=PLACES)
def test_places_do_not_share_seeds(one, other):
    assert 0 <= seed_of(*one) < 2**63
    assert (seed_of(*one) == seed_of(*other)) == (one == other)


def test_neighbours_are_no_sums():
    """Step 1 of rank 0 is not step 0 of rank 1, and 1, 11 is not 11, 1."""
    assert len({seed_of(0, 0, 1, 0), seed_of(0, 0, 0, 1), seed_of(1, 11), seed_of(11, 1), seed_of(1, 1, 1)}) == 5


def test_seeds_all_three_generators():
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    seed_process(seed_of(1, 2))
    first = draw()
    assert draw() != first
    seed_process(seed_of(1, 2))
    assert draw() == first


def test_loader_generators_differ_by_seed():
    draws = [torch.rand(1, generator=loader_generator(seed)).item() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
