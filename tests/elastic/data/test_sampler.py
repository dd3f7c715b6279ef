"""The order of samples under any history of worlds."""

from __future__ import annotations

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.errors import SettingsError


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return index


def samplers(size, world, *, cursor=0, epoch=0, **arguments):
    """One per rank, in place."""
    made = [ElasticDistributedSampler(Numbers(size), **arguments) for _ in range(world)]
    for rank, sampler in enumerate(made):
        sampler.rebind(rank=rank, num_replicas=world, epoch=epoch, cursor=cursor, done_here=0)
    return made


def train_epoch(size, batch_size, history, **arguments):
    """Samples of an epoch as the worlds of `history` [(world, steps), ...] draw them, the last one to the end."""
    cursor, drawn, padding = 0, [], 0
    for world, steps in [*history, (history[-1][0], None)]:
        members = samplers(size, world, cursor=cursor, **arguments)
        for member in members:
            member.drawn = deque()
        batches = [list(DataLoader(member, batch_size=batch_size)) for member in map(list, members)]
        assert len({len(mine) for mine in batches}) == 1, "ranks must agree on the number of steps"
        for step in range(len(batches[0]) if steps is None else min(steps, len(batches[0]))):
            for mine, member in zip(batches, members, strict=True):
                samples, padded = member.take_drawn(batch_size)
                assert samples == mine[step].tolist()
                drawn += samples[: len(samples) - padded]
                padding += padded
            cursor = min(size, cursor + world * batch_size)
    return drawn, padding


HISTORIES = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 4),
    history=HISTORIES,
    shuffle=st.booleans(),
    seed=st.integers(0, 9),
)
def test_pad_draws_every_sample_exactly_once(size, batch_size, history, shuffle, seed):
    """Whatever the worlds were: no sample is left out or repeated, and padding fills up the last step at most."""
    drawn, padding = train_epoch(size, batch_size, history, shuffle=shuffle, seed=seed)
    assert sorted(drawn) == list(range(size))
    assert padding < max(world for world, _ in history)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 60), batch_size=st.integers(1, 4), history=HISTORIES, shuffle=st.booleans())
def test_drop_leaves_less_than_one_per_rank_out(size, batch_size, history, shuffle):
    """No sample is repeated, and fewer are left out than the last world has ranks."""
    drawn, padding = train_epoch(size, batch_size, history, shuffle=shuffle, tail="drop")
    assert padding == 0
    assert max(Counter(drawn).values(), default=1) == 1
    assert size - len(drawn) < max(world for world, _ in history)


@settings(max_examples=50, deadline=None)
@given(
    worlds=st.permutations([1, 2, 3, 4, 6]),
    steps=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    seed=st.integers(0, 5),
)
def test_worlds_that_divide_need_no_padding(worlds, steps, seed):
    """144 samples, two per rank and step, worlds that divide what is left at every cut: exactly once, nothing added."""
    cursor, drawn = 0, []
    for world, count in zip(worlds, steps, strict=True):
        members = samplers(144, world, cursor=cursor, seed=seed)
        if (144 - cursor) % world:
            continue
        taken = min(2 * count, len(members[0]))
        drawn += [index for member in members for index in list(member)[:taken]]
        cursor += world * taken
    drawn += list(samplers(144, 1, cursor=cursor, seed=seed)[0])
    assert sorted(drawn) == list(range(144))


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 200), seed=st.integers(0, 5), epoch=st.integers(0, 5), world=st.integers(1, 7))
def test_a_step_takes_the_next_piece_of_the_global_order(size, seed, epoch, world):
    """The order depends on seed and epoch alone; rank r of W takes every W-th of it."""
    alone = list(samplers(size, 1, seed=seed, epoch=epoch)[0])
    shares = [list(member) for member in samplers(size, world, seed=seed, epoch=epoch)]
    together = [index for step in zip(*shares, strict=True) for index in step]
    assert together[:size] == alone
    assert len(together) - size < world


def test_shuffling():
    """Off: the data set's order. On: a permutation that another epoch or seed changes, and only that."""
    assert list(samplers(20, 1, shuffle=False)[0]) == list(range(20))
    orders = [tuple(samplers(20, 1, seed=seed, epoch=epoch)[0]) for seed, epoch in ((0, 0), (0, 1), (7, 0), (0, 0))]
    assert len(set(orders)) == 3
    assert orders[0] == orders[3]
    assert sorted(orders[0]) == list(range(20))


def test_a_long_epoch():
    """More samples than are turned into integers at a time."""
    assert sorted(index for member in samplers(10_001, 2, tail="drop") for index in member) == sorted(
        samplers(10_001, 1)[0].order()[:10_000].tolist()
    )


def test_a_data_set_smaller_than_the_world():
    """Two samples for five ranks: each rank gets one, and both are used; dropped, nobody gets any."""
    assert [list(member) for member in samplers(2, 5, shuffle=False)] == [[0], [1], [0], [1], [0]]
    assert [list(member) for member in samplers(2, 5, tail="drop")] == [[]] * 5
    drawn, padding = train_epoch(2, 3, [(5, 1)])
    assert (sorted(drawn), padding) == ([0, 1], 3)


def test_at_the_end_of_the_data_nothing_is_left():
    for tail in ("pad", "drop"):
        for member in samplers(10, 3, cursor=10, tail=tail):
            assert (list(member), len(member), member.remaining()) == ([], 0, 0)


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 80), world=st.integers(1, 4), later=st.integers(1, 4), batch_size=st.integers(1, 5),
    steps=st.integers(0, 5), tail=st.sampled_from(["pad", "drop"]), drop_last=st.booleans(),
)  # fmt: skip
def test_length_counts_batches_done_and_left(size, world, later, batch_size, steps, tail, drop_last):
    """After a rescale `len(DataLoader)` is what was trained plus what the loader still yields."""
    before = samplers(size, world, tail=tail)[0]
    done = min(steps, len(DataLoader(before.dataset, batch_size, sampler=before, drop_last=drop_last)))
    for member in samplers(size, later, tail=tail):
        cursor = min(size, done * world * batch_size)
        member.rebind(rank=member.rank, num_replicas=later, epoch=0, cursor=cursor, done_here=done * batch_size)
        loader = DataLoader(member.dataset, batch_size, sampler=member, drop_last=drop_last)
        assert len(loader) == done + len(list(loader))


def test_set_epoch():
    """The running epoch keeps its cursor, as Lightning calls this again after a rescale; another begins at its start."""
    member = ElasticDistributedSampler(Numbers(20))
    member.rebind(rank=1, num_replicas=2, epoch=3, cursor=8, done_here=4)
    member.set_epoch(3)
    assert (member.cursor, member.done_here, len(member), len(list(member))) == (8, 4, 10, 6)
    member.set_epoch(4)
    assert (member.cursor, member.done_here, len(member), len(list(member))) == (0, 0, 10, 10)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_drawn_is_what_the_batches_hold(num_workers):
    """DataLoader workers prefetch, yet each batch's samples come off the record in order, over two epochs."""
    member = ElasticDistributedSampler(Numbers(23), tail="pad", num_replicas=2, rank=1)
    member.drawn = deque()
    loader = DataLoader(member.dataset, 3, sampler=member, num_workers=num_workers, persistent_workers=num_workers > 0)
    paddings = []
    for epoch in range(2):
        member.set_epoch(epoch)
        for batch in loader:
            samples, padding = member.take_drawn(3)
            assert samples == batch.tolist()
            paddings.append(padding)
        assert not member.drawn
    assert paddings == [0, 0, 0, 1] * 2
    loader._iterator = None  # ends the persistent workers


def test_an_epoch_left_in_the_middle_leaves_no_record():
    member = ElasticDistributedSampler(Numbers(8), shuffle=False)
    member.drawn = deque()
    iterator = iter(member)
    assert [next(iterator), next(iterator)] == [0, 1]
    assert list(member) == list(range(8))
    assert list(member.drawn) == list(range(8))
    assert member.take_drawn(100) == (list(range(8)), 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": Numbers(3), "tail": "wrap"}, "tail='wrap' is unknown; choose one of 'pad', 'drop'"),
        ({"dataset": Numbers(0)}, "a length of at least 1"),
        ({"dataset": iter([1, 2])}, "a length of at least 1"),
        ({"dataset": Numbers(3), "num_replicas": 2, "rank": 2}, "rank"),
    ],
)
def test_settings_that_cannot_work(arguments, message):
    dataset = arguments.pop("dataset")
    with pytest.raises(ValueError, match=message) as caught:
        ElasticDistributedSampler(dataset, **arguments)
    assert isinstance(caught.value, SettingsError) or "rank" in arguments


def test_order_is_adopted_from_a_sampler_of_the_same_data():
    """A rescale makes a new sampler: it need not permute the data again, and other data's order is not taken."""
    first = ElasticDistributedSampler(range(20), seed=3)
    first.set_epoch(2)
    order = first.order()
    same, other = ElasticDistributedSampler(range(20), seed=3), ElasticDistributedSampler(range(20), seed=4)
    for sampler in (same, other):
        sampler.set_epoch(2)
        sampler.adopt_order(first)
    assert same.order() is order
    assert other.order().tolist() != order.tolist()
