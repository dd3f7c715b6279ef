"""Any world computes every logical rank once, on the same samples, and adds in the same order."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.collectives.canonical_sum import FlatLayout, add
from dtf_lightning.elastic.data.virtual_plan import (
    SeededBatch,
    SeededDataset,
    TreeSum,
    VirtualPlan,
    block,
    total,
    whole_subtrees,
)
from dtf_lightning.errors import SettingsError

LOGICAL = st.integers(1, 20)


@given(num_logical=LOGICAL, data=st.data())
def test_blocks(num_logical, data):
    """Every logical rank belongs to one worker, in order; no worker has two more than another."""
    world = data.draw(st.integers(1, num_logical))
    blocks = [block(rank, world, num_logical) for rank in range(world)]
    assert [leaf for leaves in blocks for leaf in leaves] == list(range(num_logical))
    assert len(blocks[0]) - len(blocks[-1]) <= 1


def concatenate(one, other):
    one[0] = f"({one[0]}+{other[0]})"


def sum_in_world(leaves, world, add_to):
    sums = {}
    for rank in range(world):
        tree = TreeSum(add_to)
        mine = block(rank, world, len(leaves))
        for leaf in mine:
            tree.push(leaf, leaves[leaf])
        assert tree.nodes == whole_subtrees(mine)
        sums |= dict(zip(tree.nodes, tree.sums, strict=True))
    return total(sums, len(leaves), add_to)


@given(num_logical=LOGICAL)
def test_sums_have_one_order(num_logical):
    """Written out with its brackets, the sum is the same in every world that there can be."""
    written = {
        sum_in_world([[str(leaf)] for leaf in range(num_logical)], world, concatenate)[0]
        for world in range(1, num_logical + 1)
    }
    assert len(written) == 1


def test_the_order_is_a_binary_tree():
    leaves = [[str(leaf)] for leaf in range(6)]
    assert sum_in_world(leaves, 4, concatenate)[0] == "(((0+1)+(2+3))+(4+5))"


def test_aligned_blocks_are_one_sum():
    """Two, four and eight workers of eight logical ranks send one sum each; three send five together."""
    sent = {world: [len(whole_subtrees(block(r, world, 8))) for r in range(world)] for world in (2, 3, 4, 8)}
    assert sent == {2: [1, 1], 3: [2, 2, 1], 4: [1] * 4, 8: [1] * 8}


@given(
    num_logical=LOGICAL, size=st.integers(1, 200), batch_size=st.integers(1, 5), steps=st.integers(0, 3), data=st.data()
)
def test_every_world_draws_the_same_for_a_logical_rank(num_logical, size, batch_size, steps, data):
    """Whatever the worlds before and after a rescale: the same positions, places and weights, each sample once."""
    world = data.draw(st.integers(1, num_logical))
    consumed = min(steps * num_logical * batch_size, size // (num_logical * batch_size) * num_logical * batch_size)
    plan = VirtualPlan(num_logical, consumed=consumed, dataset_size=size, world_size=world, batch_size=batch_size)
    alone = VirtualPlan(num_logical, consumed=0, dataset_size=size, world_size=1, batch_size=batch_size)
    expected = {
        alone.place(index, 0): (list(alone.positions(index, 0)), alone.weight(index, 0))
        for index in range(len(alone))
        if alone.share(index, 0)
    }
    found, drawn = {}, []
    for index in range(len(plan)):
        shares = [plan.share(index, rank) for rank in range(world)]
        assert sum(shares) == plan.sizes[index]
        for rank in range(world):
            positions = [consumed + position for position in plan.positions(index, rank)]
            assert len(positions) == plan.drawn(index, rank) > 0, "a stand-in draws something too"
            if shares[rank]:
                found[plan.place(index, rank)] = (positions, plan.weight(index, rank))
                drawn += positions
    assert sorted(drawn) == list(range(consumed, size))
    assert found == {place: value for place, value in expected.items() if place[0] >= plan.first_step}
    assert len(plan) % plan.accumulate == 0


def test_a_short_last_step():
    """10 samples, four logical ranks of two, three workers: 8, then 2 that logical rank 0 has alone."""
    plan = VirtualPlan(4, consumed=0, dataset_size=10, world_size=3, batch_size=2)
    assert plan.sizes == [6, 2, 2, 0]
    assert [plan.logical_rank(0, rank) for rank in range(3)] == [0, 2, 3]
    assert [plan.logical_rank(1, rank) for rank in range(3)] == [1, None, None]
    assert [plan.weight(2, rank) for rank in range(3)] == [1, 0, 0]
    assert list(plan.positions(3, 2)) == [8, 9]
    assert len(VirtualPlan(4, consumed=0, dataset_size=10, world_size=3, batch_size=2, drop_last=True)) == 2
    assert len(VirtualPlan(4, consumed=8, dataset_size=10, world_size=3, batch_size=2, drop_last=True)) == 0
    with pytest.raises(SettingsError, match="steps of 8 samples; the data set has 7"):
        VirtualPlan(4, consumed=0, dataset_size=7, world_size=3, batch_size=2, drop_last=True)


class Drawing(torch.utils.data.Dataset):
    kind = "drawing"

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return index, torch.rand(1).item(), float(np.random.rand()), random.random()


def test_samples_are_read_with_the_batchs_own_numbers():
    """However it travels, and whatever was drawn before; the data set's own attributes are still there."""
    data = pickle.loads(pickle.dumps(SeededDataset(Drawing())))
    batch = SeededBatch([2, 3])
    batch.seed = 7
    first = data.__getitems__(batch)
    assert data.__getitems__(pickle.loads(pickle.dumps(batch))) == first
    assert data.__getitems__([2, 3]) != first
    assert (len(data), data.kind, data[1][0]) == (4, "drawing", 1)
    with pytest.raises(AttributeError):
        _ = data.other


def test_layout_of_several_dtypes():
    """Tensors lie one after the other by dtype, padded to the world."""
    like = [torch.ones(3), torch.ones(2, 2, dtype=torch.float64), torch.ones(()), torch.ones(2, dtype=torch.int64)]
    layout = FlatLayout(like, 4)
    vectors = layout.vectors(0)
    assert [(vector.dtype, len(vector)) for vector in vectors] == [
        (torch.float32, 4), (torch.float64, 4), (torch.int64, 4),
    ]  # fmt: skip
    views = layout.views(vectors)
    assert [view.shape for view in views] == [one.shape for one in like]
    add(views, like)
    add(views, like)
    assert [vector.tolist() for vector in vectors] == [[2, 2, 2, 2], [2, 2, 2, 2], [2, 2, 0, 0]]
    assert layout.vectors(0) is vectors
