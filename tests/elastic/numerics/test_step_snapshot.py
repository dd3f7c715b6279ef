"""A step that is rolled back leaves no trace in buffers and random numbers."""

from __future__ import annotations

import torch
from torch import nn

from dtf_lightning.elastic.numerics.step_snapshot import StepSnapshot


class Average(nn.Module):
    """A buffer that a new tensor replaces, as many a moving average is written; one that comes late; one not saved."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("late", None)
        self.register_buffer("hidden", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        self.late = x.detach().sum()
        self.hidden += 1
        return x


def model():
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), Average())


def buffers(module):
    return {name: None if buffer is None else buffer.clone() for name, buffer in module.named_buffers()}


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_step_after_a_snapshot_can_be_done_again():
    """BatchNorm's statistics, replaced buffers and the dropout mask: the second time gives the same bits."""
    torch.manual_seed(1)
    module, snapshot = model(), StepSnapshot()
    x = torch.randn(8, 3)
    for _ in range(3):
        module(x)
        snapshot.take(module)
        before = buffers(module)
        first, after = module(x), buffers(module)
        assert not equal(before, after)
        snapshot.restore(module)
        assert equal(buffers(module), before)
        again = module(x)
        assert torch.equal(first, again)
        assert equal(buffers(module), after)


def test_restoring_twice():
    """A second failure comes before the next boundary: the same state again."""
    module, snapshot = model(), StepSnapshot()
    snapshot.take(module)
    before = buffers(module)
    for _ in range(2):
        module(torch.randn(8, 3))
        snapshot.restore(module)
        assert equal(buffers(module), before)


def test_a_buffer_of_another_shape():
    """A queue that grows: the snapshot takes it as it is now."""
    module, snapshot = nn.Module(), StepSnapshot()
    module.register_buffer("queue", torch.zeros(0))
    for size in range(1, 4):
        module.queue = torch.cat([module.queue, torch.ones(1)])
        snapshot.take(module)
        module.queue = torch.cat([module.queue, torch.full((5,), 9.0)])
        snapshot.restore(module)
        assert torch.equal(module.queue, torch.ones(size))


def test_without_buffers_only_random_numbers_go_back():
    module, snapshot = nn.Linear(2, 2), StepSnapshot()
    snapshot.take(module)
    first = torch.rand(3)
    snapshot.restore(module)
    assert torch.equal(torch.rand(3), first)


def test_nothing_was_taken_of_this_module():
    """Neither before the first boundary, nor of another module."""
    module, snapshot = model(), StepSnapshot()
    snapshot.restore(module)
    snapshot.take(nn.Linear(1, 1))
    state = torch.get_rng_state()
    module(torch.randn(8, 3))
    moved = buffers(module)
    snapshot.restore(module)
    assert equal(buffers(module), moved)
    assert not torch.equal(torch.get_rng_state(), state)
