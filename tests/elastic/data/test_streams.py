"""Streams: batches that know what they are made of, places that all ranks know, states that make going on cheap."""

from __future__ import annotations

import pytest
from torch.utils.data import DataLoader, default_collate

from dtf_lightning.elastic.data.streams import Drawn, Opening, StreamPlaces, StreamReader, Streams, has_state
from dtf_lightning.errors import SettingsError
from support.elastic.data_kinds import InStreams


def reader(data, openings, **arguments):
    given = {"epoch": 0, "batch_size": 4, "collate": default_collate, "drop_last": False, "share_every": 2}
    return StreamReader(data, openings, **{**given, **arguments})


def test_batches_take_from_all_streams_in_turn():
    data = InStreams(range(10), 3)
    drawn = list(reader(data, {0: Opening(), 1: Opening(), 2: Opening()}))
    assert [dict(one.counts) for one in drawn] == [{0: 2, 1: 1, 2: 1}, {0: 1, 1: 2, 2: 1}, {0: 1, 2: 1}]
    assert [sorted(one.states) for one in drawn] == [[], [0, 1, 2], []]
    assert sorted(sample for one in drawn for sample in one.batch.tolist()) == list(range(10))


def test_a_state_saves_reading():
    """Opened at a state, only what came after it is drawn and thrown away."""
    data = InStreams(range(40), 2)
    whole = [sample for one in reader(data, {1: Opening()}) for sample in one.batch.tolist()]
    resumed = reader(data, {1: Opening(at=8, state={"place": 8}, skip=3)})
    assert [sample for one in resumed for sample in one.batch.tolist()] == whole[11:]


def test_an_incomplete_batch_can_be_dropped():
    assert [len(one.batch) for one in reader(InStreams(range(10), 1), {0: Opening()}, drop_last=True)] == [4, 4]


def test_loader_workers_share_the_streams():
    """Each makes whole batches of its own streams; more workers than streams do no harm."""
    data = InStreams(range(20), 1)
    loader = DataLoader(reader(data, {0: Opening()}), batch_size=None, num_workers=2, collate_fn=_same)
    drawn = list(loader)
    assert all(len(one.counts) == 1 for one in drawn)
    assert sorted(sample for one in drawn for sample in one.batch.tolist()) == list(range(20))


def _same(drawn):
    return drawn


def test_nothing_to_read_but_a_stand_in():
    assert list(reader(InStreams(range(6), 2), {})) == []
    assert len(reader(InStreams(range(6), 2), {}).stand_in()) == 3
    assert reader(InStreams(range(0), 2), {}).stand_in() is None


def test_what_is_a_stream():
    data = InStreams(range(6), 2)
    assert isinstance(data, Streams)
    assert has_state(data.shard(2, 0))
    assert not has_state(InStreams(range(6), 2, share_every=0).shard(2, 0))


def places(members, rank, former=None, *, epoch=0, done=0, num_streams=3):
    made = StreamPlaces(num_streams)
    made.bind(former, members=members, rank=rank, epoch=epoch, done=done)
    return made


def test_a_dead_members_streams_go_on_where_they_were():
    """Known to the survivor without a word from the dead: place 3 of stream 1, whose state is known at 2."""
    survivor = places(["a", "b"], 0)
    assert sorted(survivor.openings()) == [0, 1]
    assert survivor.agreed(0, Drawn(None, {0: 1, 1: 1}, {}), [1, 1, 2])
    survivor.share([{0: (1, "s0")}, {2: (2, "s2")}])
    assert survivor.agreed(1, Drawn(None, {0: 1, 1: 1}, {}), [1, 1, 1])
    assert not survivor.agreed(2, None, [0, 0, 0])
    alone = places(["a"], 0, survivor.state_dict(), done=2)
    assert alone.openings() == {
        0: Opening(at=1, state="s0", skip=1),
        1: Opening(at=0, state=None, skip=2),
        2: Opening(at=2, state="s2", skip=1),
    }


def test_a_shared_state_ahead_of_what_is_committed_is_not_used():
    """A batch that was read ahead and rolled back."""
    one = places(["a"], 0, num_streams=1)
    for batch in range(3):
        assert one.agreed(batch, Drawn(None, {0: 4}, {}), [4])
        one.share([{0: (4 * batch + 4, f"after {batch}")}])
    again = places(["a"], 0, one.state_dict(), done=2, num_streams=1)
    assert again.openings() == {0: Opening(at=8, state="after 1", skip=0)}


def test_who_stays_keeps_its_streams():
    before = places(["a", "b"], 0, num_streams=8)
    after = places(["b", "c", "a"], 2, before.state_dict(), epoch=1, num_streams=8)
    kept = set(after.openings()) & set(before.openings())
    assert len(kept) == 3


def test_samples_weigh_the_same():
    """3 samples here, 1 there, of two ranks: their means weigh 3/2 and 1/2."""
    one, other = (places(["a", "b"], rank, num_streams=2) for rank in (0, 1))
    assert one.agreed(0, Drawn(None, {0: 3}, {}), [3, 1])
    assert other.agreed(0, Drawn(None, {1: 1}, {}), [3, 1])
    assert (one.weight_of(0), other.weight_of(0)) == (1.5, 0.5)
    assert (one.drawn_in(0), other.drawn_in(0)) == ([0, 2, 4], [1])
    one.forget_before(1)
    assert one.samples_of(0) == 0
    assert one.first == 1


@pytest.mark.parametrize(
    ("former", "done", "message"),
    [
        ({"owners": [0, 0]}, 0, "the run has 2 streams, this worker's data set 3"),
        (None, 4, "not one of streams.*Resume from a checkpoint"),
    ],
)
def test_position_of_other_data(former, done, message):
    with pytest.raises(SettingsError, match=message):
        places(["a"], 0, former, done=done)
