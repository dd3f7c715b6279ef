"""Every sample in exactly one micro-batch, and weights that make a step's gradient the mean over its samples."""

from __future__ import annotations

from collections import Counter, deque
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.step_plans import (
    BatchSettings,
    ElasticBatchSampler,
    GlobalBatch,
    PerRankBatch,
    StepPlan,
    check_world,
    split_evenly,
)
from dtf_lightning.errors import SettingsError

POLICIES = st.one_of(
    st.builds(PerRankBatch, accumulate=st.integers(1, 3)), st.builds(GlobalBatch, size=st.integers(1, 40))
)


def plan(policy, left, world, batch_size=4, **arguments):
    return StepPlan(policy, samples_left=left, world_size=world, batch_size=batch_size, **arguments)


@given(policy=POLICIES, left=st.integers(1, 200), world=st.integers(1, 9), batch_size=st.integers(1, 8))
def test_gradient_is_the_mean_over_the_steps_samples(policy, left, world, batch_size):
    """Lightning's 1/A, DDP's 1/W and the weight give every sample of a step 1/G, for any policy and remainder."""
    made = plan(policy, left, world, batch_size)
    assert sum(made.sizes) == left
    for index, (size, total) in enumerate(zip(made.sizes, made.totals, strict=True)):
        shares = [made.share(index, rank) for rank in range(world)]
        assert sum(shares) == size
        assert max(shares) <= batch_size
        assert max(shares) - min(shares) <= 1
        for rank, share in enumerate(shares):
            per_sample = Fraction(made.weight(index, rank)).limit_denominator(10**6) / made.accumulate / world
            assert per_sample == Fraction(share, total)


def test_per_rank_weighs_only_the_tail():
    """10 samples, two ranks of four: (4, 4), then (1, 1); 11: (2, 1)."""
    assert [plan(PerRankBatch(), 10, 2).weight(i, r) for i in (0, 1) for r in (0, 1)] == [1, 1, 1, 1]
    assert [plan(PerRankBatch(), 11, 2).weight(i, r) for i in (0, 1) for r in (0, 1)] == [1, 1, 4 / 3, 2 / 3]


@pytest.mark.parametrize(
    ("world", "sizes", "accumulate"),
    [(1, [4, 4, 4, 4], 4), (2, [8, 8], 2), (3, [8, 8], 2), (4, [16], 1), (5, [16], 1)],
)
def test_global_accumulates_what_a_world_cannot_hold_at_once(world, sizes, accumulate):
    made = plan(GlobalBatch(size=16), 32, world)
    assert (made.sizes, made.accumulate) == (sizes * 2, accumulate)


def test_global_batch_of_16_among_5():
    """The first ranks take one more, and weigh as much more."""
    made = plan(GlobalBatch(size=16), 16, 5)
    assert [made.share(0, rank) for rank in range(5)] == [4, 3, 3, 3, 3]
    assert sum(made.weight(0, rank) for rank in range(5)) == pytest.approx(5)


def test_drop_last_leaves_only_the_incomplete_step_out():
    assert plan(GlobalBatch(size=8), 20, 2, drop_last=True).sizes == [8, 8]
    assert plan(GlobalBatch(size=8), 5, 2, drop_last=True).sizes == [5]


def test_split_evenly():
    assert split_evenly(11, 3) == [4, 4, 3]


def draw(size, history, policy, batch_size=4):
    """Samples that count, as the worlds of `history` [(world, batches), ...] draw them, the last one to the end."""
    cursor, consumed, done = 0, Counter(), 0
    for world, batches in [*history, (history[-1][0], None)]:
        made = plan(policy, size - cursor, world, batch_size)
        drawn = []
        for rank in range(world):
            sampler = ElasticDistributedSampler(range(size), num_replicas=world, rank=rank)
            sampler.rebind(rank=rank, num_replicas=world, epoch=0, cursor=cursor, done_here=0)
            sampler.drawn = deque()
            batch_sampler = ElasticBatchSampler(sampler, batch_size)
            batch_sampler.plan, batch_sampler.batches_done = made, done
            drawn.append(list(batch_sampler))
            assert len(batch_sampler) == done + len(drawn[-1])
            assert list(sampler.drawn) == [index for batch in drawn[-1] for index in batch]
        assert len({len(mine) for mine in drawn}) == 1, "all ranks run the same number of batches"
        for index in range(len(made))[:batches]:
            for rank in range(world):
                consumed.update(drawn[rank][index][: made.share(index, rank)])
            cursor += made.sizes[index]
            done += 1
    return consumed


@given(
    size=st.integers(1, 120),
    history=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=4),
    policy=POLICIES,
)
def test_any_history_of_worlds_consumes_each_sample_once(size, history, policy):
    """Also a data set smaller than the world: ranks without a sample compute a stand-in, which does not count."""
    assert draw(size, history, policy) == Counter(range(size))


class Greedy:
    def __init__(self, *steps):
        self.steps = list(steps)

    def next_step(self, samples_left, world_size, batch_size):
        return self.steps.pop(0)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([[]], "returned .. for 8 samples left and 2 ranks"),
        ([[0, 4]], r"returned \[0, 4\]"),
        ([[9]], r"returned \[9\]"),
        ([[4], [2, 2]], "returned steps of 1, then of other numbers"),
        ([[2, 2], [2], [2]], "returned steps of 2, then of other numbers"),
    ],
)
def test_bad_policies(steps, message):
    with pytest.raises(SettingsError, match=message):
        plan(Greedy(*steps), 8, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tail": "cut"}, r"ElasticCallback\(tail='cut'\): choose one of 'pad', 'drop', 'exact'"),
        ({"batch": "local"}, r"ElasticCallback\(batch='local'\): choose 'per_rank', 'global'"),
        ({"global_batch": 8}, "global_batch=8. needs batch='global'"),
        ({"batch": "global", "global_batch": 0}, "must be at least 1"),
        ({"batch": "global", "tail": "pad"}, "use tail='exact' or 'drop'"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(SettingsError, match=message):
        BatchSettings(**arguments)


def test_settings_make_policies():
    """Padding is as ever; all else is planned. Without a size, `global` keeps the first generation's."""
    assert not BatchSettings().planned
    assert not BatchSettings(tail="drop").planned
    assert BatchSettings(tail="exact").policy(accumulate=2, first_step=9) == PerRankBatch(accumulate=2)
    assert BatchSettings(batch="global").policy(accumulate=1, first_step=9) == GlobalBatch(size=9)
    assert BatchSettings(batch="global", global_batch=7).policy(accumulate=1, first_step=9) == GlobalBatch(size=7)
    mine = Greedy()
    assert BatchSettings(batch=mine).policy(accumulate=1, first_step=9) is mine
    assert BatchSettings(batch=mine).planned


def test_global_batch_smaller_than_the_world(caplog):
    """An error where a run begins with it, a warning where the world has grown beyond it."""
    with pytest.raises(SettingsError, match="global_batch=3 is smaller than the world of 4 ranks"):
        check_world(GlobalBatch(size=3), world_size=4, beginning=True)
    check_world(GlobalBatch(size=3), world_size=4, beginning=False)
    assert "1 of them compute nothing that counts" in caplog.text
    check_world(GlobalBatch(size=4), world_size=4, beginning=True)
