"""Any random sequence of joins, leaves and deaths over three epochs consumes each sample exactly once.

A history without processes: members come and go between optimizer steps, or die in one, which is then rolled back (their
position is that before it) or forward (somebody has stepped). With `pad` what comes on top is the documented padding.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.shards import ShardedElasticSampler
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler, PerRankBatch, StepPlan
from dtf_lightning.elastic.data.streams import StreamPlaces, StreamReader
from support.elastic.data_kinds import InShards, InStreams

BATCH = 3
NUM_EPOCHS = 3


@dataclass(frozen=True)
class Change:
    """After so many steps of the world that runs."""

    steps: int
    leaves: tuple[int, ...]
    """Indices of members that go."""
    joins: int
    in_step: str
    """`no`: at a boundary; `back`: in a step that nobody completed; `forward`: in one that somebody did."""


CHANGES = st.lists(
    st.builds(
        Change,
        steps=st.integers(0, 4),
        leaves=st.lists(st.integers(0, 4), max_size=2, unique=True).map(tuple),
        joins=st.integers(0, 2),
        in_step=st.sampled_from(["no", "back", "forward"]),
    ),
    max_size=6,
)


@dataclass
class History:
    """Members by name, and what the committed steps of an epoch have consumed."""

    changes: list[Change]
    members: list[str] = field(default_factory=lambda: ["m0", "m1"])
    num_members: int = 2
    consumed: Counter[int] = field(default_factory=Counter)
    num_padding: int = 0

    def next_steps(self) -> tuple[int, bool]:
        """How many steps this world makes, and whether one more is drawn in vain."""
        if not self.changes:
            return 1 << 30, False
        change = self.changes[0]
        return change.steps + (change.in_step == "forward"), change.in_step == "back"

    def change(self) -> None:
        change = self.changes.pop(0)
        stay = [name for index, name in enumerate(self.members) if index not in change.leaves]
        stay = stay or self.members[:1]
        joiners = [f"m{self.num_members + i}" for i in range(change.joins)]
        self.num_members += change.joins
        self.members = (stay + joiners)[:5]


def consume(history: History, size: int, make: Any, *, padded: bool) -> None:
    """Three epochs of an order that is divided anew, in batches of `BATCH` per rank."""
    former = None
    for epoch in range(NUM_EPOCHS):
        cursor = 0
        while cursor < size:
            world = len(history.members)
            samplers = [make() for _ in range(world)]
            plan = None
            for rank, sampler in enumerate(samplers):
                sampler.rebind(rank=rank, num_replicas=world, epoch=epoch, cursor=cursor, done_here=0)
                if not padded:
                    plan = StepPlan(PerRankBatch(), samples_left=size - cursor, world_size=world, batch_size=BATCH)
                if isinstance(sampler, ShardedElasticSampler):
                    sizes = plan.sizes if plan is not None else None
                    sampler.settle(former, members=list(history.members), in_epoch=cursor > 0, sizes=sizes)
            drawn = [list(batches(sampler, plan)) for sampler in samplers]
            states = [sampler.state_dict() for sampler in samplers if isinstance(sampler, ShardedElasticSampler)]
            assert all(str(state) == str(states[0]) for state in states), "ranks divide differently"
            former = states[0] if states else None
            num_steps, _ = history.next_steps()
            for step in range(num_steps):
                if cursor >= size:
                    break
                total = sum(len(mine[step]) for mine in drawn) if plan is None else plan.sizes[step]
                for rank, mine in enumerate(drawn):
                    share = len(mine[step]) if plan is None else plan.share(step, rank)
                    history.consumed.update((epoch, sample) for sample in mine[step][:share])
                history.num_padding += max(0, cursor + total - size)
                cursor = min(size, cursor + total)
            if cursor < size:
                history.change()


def batches(sampler: Any, plan: StepPlan | None) -> list[list[int]]:
    if plan is not None:
        planned = ElasticBatchSampler(sampler, BATCH)
        planned.plan = plan
        return list(planned)
    mine = list(sampler)
    return [mine[i : i + BATCH] for i in range(0, len(mine), BATCH)]


def expected(size: int) -> Counter[Any]:
    return Counter((epoch, sample) for epoch in range(NUM_EPOCHS) for sample in range(size))


SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=8)


@given(size=st.integers(1, 50), changes=CHANGES)
def test_map_style_exact(size, changes):
    history = History(list(changes))
    consume(history, size, lambda: ElasticDistributedSampler(range(size)), padded=False)
    assert history.consumed == expected(size)


@given(size=st.integers(1, 50), changes=CHANGES)
def test_map_style_padded(size, changes):
    """At most world - 1 samples an epoch come on top."""
    history = History(list(changes))
    consume(history, size, lambda: ElasticDistributedSampler(range(size)), padded=True)
    assert set(history.consumed) == set(expected(size))
    assert (history.consumed - expected(size)).total() == history.num_padding <= NUM_EPOCHS * 4


@given(sizes=SIZES, changes=CHANGES, padded=st.booleans(), shuffle=st.booleans())
def test_sharded(sizes, changes, padded, shuffle):
    """And every rank computes the same division."""
    history = History(list(changes))
    data = InShards(range(sum(sizes)), sizes)
    consume(history, len(data), lambda: ShardedElasticSampler(data, shuffle=shuffle), padded=padded)
    assert set(history.consumed) == set(expected(len(data)))
    assert (history.consumed - expected(len(data))).total() == history.num_padding <= NUM_EPOCHS * 4


@settings(deadline=None)
@given(
    size=st.integers(1, 50),
    num_streams=st.integers(1, 6),
    share_every=st.integers(0, 3),
    changes=CHANGES,
)
def test_streams(size, num_streams, share_every, changes):
    """Whether streams have states or not; who takes one over goes on at the very sample."""
    history = History(list(changes))
    data = InStreams(range(size), num_streams, share_every)
    former = None
    for epoch in range(NUM_EPOCHS):
        done = 0
        while True:
            places = [StreamPlaces(num_streams) for _ in history.members]
            for rank, mine in enumerate(places):
                mine.bind(former, members=list(history.members), rank=rank, epoch=epoch, done=done)
            num_steps, in_vain = history.next_steps()
            agreed = read(data, places, done, num_steps + in_vain)
            for step in range(done, done + min(num_steps, agreed)):
                for rank, mine in enumerate(places):
                    ids = mine.drawn_in(step)
                    assert mine.weight_of(step) == len(ids) * len(places) / mine.samples_of(step), rank
                    history.consumed.update((epoch, sample) for sample in ids)
            # Whoever lives on knows all that matters.
            former = places[-1].state_dict()
            done += min(num_steps, agreed)
            for mine in places:
                mine.forget_before(done)
            if agreed < num_steps + in_vain:
                break
            history.change()
    assert history.consumed == expected(size)


def read(data: InStreams, places: list[StreamPlaces], done: int, num_batches: int) -> int:
    """Draw batches on all ranks, as `StreamLoader` does; how many there were. Samples are those that their ids say."""
    readers = [
        iter(
            StreamReader(
                data,
                mine.openings(),
                epoch=mine.epoch,
                batch_size=BATCH,
                collate=default_collate,
                drop_last=False,
                share_every=data.share_every,
            )
        )
        for mine in places
    ]
    for number in range(num_batches):
        drawn = [next(reader, None) for reader in readers]
        counts = [sum(one.counts.get(s, 0) for one in drawn if one is not None) for s in range(data.num_shards)]
        agreed = [mine.agreed(done + number, one, counts) for mine, one in zip(places, drawn, strict=True)]
        assert len(set(agreed)) == 1
        if not agreed[0]:
            return number
        for mine, one in zip(places, drawn, strict=True):
            if one is not None:
                ids = mine.drawn_in(done + number)
                truth = [data.shard(data.num_shards, i % data.num_shards).indices[i // data.num_shards] for i in ids]
                assert sorted(one.batch.tolist()) == sorted(truth)
        if (done + number + 1) % data.share_every == 0:
            everyone = [mine.states for mine in places]
            for mine in places:
                mine.share(everyone)
    return num_batches
