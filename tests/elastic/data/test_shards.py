"""Shards near the workers: each rank reads its own, few move, and who keeps one does not load it again."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.data.shards import ShardedElasticDataset, ShardedElasticSampler
from dtf_lightning.errors import SettingsError
from support.elastic.data_kinds import InShards


def world(data, members, *, former=None, epoch=0, cursor=0, in_epoch=False, **arguments):
    """One sampler per rank of a new world."""
    samplers = []
    for rank in range(len(members)):
        sampler = ShardedElasticSampler(data, **arguments)
        sampler.rebind(rank=rank, num_replicas=len(members), epoch=epoch, cursor=cursor, done_here=0)
        sampler.settle(former, members=list(members), in_epoch=in_epoch)
        samplers.append(sampler)
    return samplers


def shards_read(data, indices):
    return {data.locate(index)[0] for index in indices}


def test_numbers_run_through_the_shards():
    data = InShards(range(10), [3, 5, 2])
    assert len(data) == 10
    assert [data.locate(index) for index in (0, 2, 3, 7, 8, 9)] == [(0, 0), (0, 2), (1, 0), (1, 4), (2, 0), (2, 1)]
    assert [data[index] for index in range(10)] == list(range(10))
    assert data.loaded == [0, 1, 2]


def test_few_are_kept_if_so_wanted():
    """One at a time: going back to a shard loads it again."""
    data = InShards(range(10), [5, 5])
    data.num_cached = 1
    assert [data[index] for index in (0, 1, 5, 0)] == [0, 1, 5, 0]
    assert data.loaded == [0, 1, 0]


def test_ranks_read_their_own_shards_one_after_the_other():
    data = InShards(range(60), [10] * 6)
    for sampler in world(data, "abc"):
        drawn = list(sampler)
        assert shards_read(data, drawn) == set(sampler.shards())
        assert len(sampler.shards()) == 2
        assert shards_read(data, drawn[:10]) == {sampler.shards()[0]}


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), num_members=st.integers(1, 5))
def test_at_most_a_shards_worth_is_read_elsewhere(sizes, num_members):
    """So that all ranks end together."""
    data = InShards(range(sum(sizes)), sizes)
    for sampler in world(data, [f"m{i}" for i in range(num_members)], tail="drop"):
        foreign = [i for i in sampler if sampler.owners[data.locate(i)[0]] != sampler.rank]
        assert len(foreign) <= max(sizes) + 1


def test_a_joiner_takes_over_and_survivors_keep():
    """6 shards each, one of each consumed, then a joiner: three of the ten that are left change hands, to the joiner."""
    data = InShards(range(120), [10] * 12)
    before = world(data, "ab")
    after = world(data, "abc", former=before[0].state_dict(), in_epoch=True, cursor=20)
    moved = before[0].owners != after[0].owners
    assert moved.sum() == 3
    assert set(after[0].owners[moved]) == {2}


def test_the_next_epoch_keeps_the_assignment():
    """Other orders, the same shards."""
    data = InShards(range(60), [10] * 6)
    (first, _) = world(data, "ab")
    owned, drawn = set(first.shards()), list(first)
    first.set_epoch(1)
    assert set(first.shards()) == owned
    assert list(first) != drawn
    assert sorted(first) == sorted(drawn)


def test_the_data_set_is_told():
    """What another worker owns now is forgotten."""
    data = InShards(range(40), [10] * 4)
    (alone,) = world(data, "a")
    assert len([data[i] for i in alone]) == 40
    world(data, "ab", former=alone.state_dict(), epoch=1)
    assert len(data._loaded) <= 2


def test_state_can_be_pickled_and_loaded():
    data = InShards(range(41), [5, 9, 3, 7, 7, 2, 8])
    before = world(data, "abc")
    state = pickle.loads(pickle.dumps(before[1].state_dict()))
    one, other = (
        world(data, "ax", former=former, in_epoch=True, cursor=12) for former in (state, before[0].state_dict())
    )
    assert [list(sampler) for sampler in one] == [list(sampler) for sampler in other]


def test_without_elastic_callback():
    """A plain sampler: all shards, each sample once; another epoch, another order."""
    data = InShards(range(30), [10, 15, 5])
    sampler = ShardedElasticSampler(data)
    assert sorted(sampler) == list(range(30))
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(sampler) == list(range(30))
    assert list(sampler) != first
    assert list(ShardedElasticSampler(data, shuffle=False)) == list(range(30))


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ([], {}, "one number of at least 1 per shard"),
        ([3, 0], {}, "one number of at least 1 per shard"),
        ([3], {"num_cached": 0}, r"num_cached=0\): must be at least 1"),
    ],
)
def test_bad_shards(sizes, arguments, message):
    class Mine(ShardedElasticDataset):
        def load_shard(self, shard):
            return []

    with pytest.raises(SettingsError, match=message):
        Mine(sizes, **arguments)


def test_position_of_other_data():
    data, other = InShards(range(20), [10, 10]), InShards(range(20), [5] * 4)
    (former,) = world(data, "a")
    with pytest.raises(SettingsError, match="the run has 2 shards, this worker's data set 4"):
        world(other, "a", former=former.state_dict())
    with pytest.raises(SettingsError, match=r"not one of sharded data.*Resume from a checkpoint"):
        world(data, "a", in_epoch=True, cursor=5)
