"""How jobs are divided: beside slow references, for any weights, devices and failures."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.devices import Measured, Offer, by_what_can_be_steered, seats, seats_at
from dtf_lightning.farm.orchestrate.dividing import MAX_SUBTASKS, Seat, divide, stretches
from dtf_lightning.farm.orchestrate.progress import JobStatus, percentage, status_of
from dtf_lightning.farm.orchestrate.splitting import MAX_DEPTH, CannotSplitYet, Job, Share, Strategy, anew, split, tree
from dtf_lightning.farm.rules.needs import Need

WEIGHTS = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=20)
SEATS = st.lists(
    st.builds(Seat, label=st.sampled_from(["", "fast", "slow"]), speed=st.floats(0.01, 1e4)), min_size=1, max_size=30
)


@given(whole=st.integers(0, 5000), weights=WEIGHTS)
def test_shares_are_the_whole_and_nearest_to_their_weights(whole, weights):
    """The reference hands out one after the other to whoever lacks the most."""
    shares = divide(whole, weights)
    assert sum(shares) == whole
    exact = [Fraction(weight) for weight in weights]
    if not any(exact):
        exact = [Fraction(1)] * len(exact)
    ideal = [whole * one / sum(exact) for one in exact]
    assert all(abs(share - wanted) < 1 for share, wanted in zip(shares, ideal, strict=True))
    slow = [int(one) for one in ideal]
    while sum(slow) < whole:
        lacks = [wanted - share for share, wanted in zip(slow, ideal, strict=True)]
        slow[lacks.index(max(lacks))] += 1
    assert shares == slow


@settings(max_examples=40)
@given(whole=st.integers(0, 20_000), given_seats=SEATS, pieces=st.integers(1, 50))
def test_stretches_are_the_whole(whole, given_seats, pieces):
    found = stretches(whole, given_seats, pieces)
    assert [number for one in found for number in (one.begin, one.end)] == sorted(
        number for one in found for number in (one.begin, one.end)
    )
    assert sum(one.size for one in found) == whole
    assert all(one.size > 0 for one in found)
    assert all(one.end == other.begin for one, other in pairwise(found))
    assert len(found) <= min(MAX_SUBTASKS, pieces * len(given_seats), max(whole, 1))


@given(given_seats=SEATS)
def test_with_one_piece_each_seat_gets_what_its_speed_is_worth(given_seats):
    found = stretches(100_000, given_seats, 1)
    total = sum(seat.speed for seat in given_seats)
    ranked = sorted(given_seats, key=lambda seat: (-seat.speed, seat.label))
    wanted = [size for seat in ranked if (size := 100_000 * seat.speed / total) >= 1]
    assert all(abs(one.size - size) < 1 for one, size in zip(found, wanted, strict=False))


def test_more_pieces_than_devices():
    """Half by speed, the rest in equal pieces that anybody takes."""
    found = stretches(100, [Seat(label="fast", speed=4.0), Seat(label="slow", speed=1.0)], 3)
    assert [(one.size, one.label) for one in found] == [
        (40, "fast"), (10, "slow"), (13, ""), (13, ""), (12, ""), (12, ""),
    ]  # fmt: skip


class TestSeats:
    def test_room_of_a_worker(self):
        offer = Offer(devices={"cpu": 4.0, "memory": 1000.0}, labels=("linux",))
        assert seats_at(offer, ()) == 4
        assert seats_at(offer, [Need(amounts={"cpu": 1, "memory": 400})]) == 2
        assert seats_at(offer, [Need(amounts={"cpu": 1}, exclusive=True)]) == 1
        assert seats_at(offer, [Need(amounts={"gpu": 1}), Need(amounts={"cpu": 2})]) == 2
        assert seats_at(offer, [Need(labels=("ssd",))]) == 0

    def test_speeds_are_those_of_classes(self):
        """A class that has done nothing is as fast as the others in the middle; only labels can be steered by."""
        workers = {
            "a": Offer(devices={"cpu": 1.0}, labels=("x", "quick")),
            "b": Offer(devices={"cpu": 1.0}, labels=("x", "quick")),
            "c": Offer(devices={"cpu": 2.0}, labels=("x",)),
            "d": Offer(devices={"cpu": 1.0}, labels=("x", "new")),
            "e": Offer(devices={}, labels=()),
        }
        measured = [
            Measured(worker="a", inputs=30, seconds=10.0),
            Measured(worker="b", inputs=30, seconds=20.0),
            Measured(worker="c", inputs=10, seconds=10.0),
            Measured(worker="gone", inputs=10, seconds=1.0),
            Measured(worker="c", inputs=10, seconds=0.0),
        ]
        found = seats(workers, (), measured)
        assert sorted((seat.label, seat.speed) for seat in found) == [
            ("", 1.0), ("", 1.0), ("new", 1.5), ("quick", 2.0), ("quick", 2.0),
        ]  # fmt: skip
        assert by_what_can_be_steered([Seat(speed=1.0), Seat(speed=3.0), Seat(label="x", speed=9.0)]) == [
            Seat(speed=2.0), Seat(speed=2.0), Seat(label="x", speed=9.0),
        ]  # fmt: skip


class TestStrategies:
    SEATS = (Seat(), Seat(), Seat())

    def test_functions(self):
        told = split(Strategy.FUNCTION_PARALLEL, Job(functions=("latency", "memory"), num_inputs=9), self.SEATS)
        assert [(share.function, share.end) for share in told.shares] == [("latency", 0), ("memory", 0)]

    def test_ensembles(self):
        told = split(Strategy.ENSEMBLE, Job(models=("a", "b")), ())
        assert [share.model for share in told.shares] == ["a", "b"]
        told = split(Strategy.ENSEMBLE, Job(devices=("cuda", "cpu")), ())
        assert [share.label for share in told.shares] == ["cuda", "cpu"]

    def test_nobody_is_there(self):
        told = split(Strategy.DATA_PARALLEL, Job(num_inputs=10), ())
        assert told.first == 0
        assert [(share.begin, share.end) for share in told.shares] == [(0, 3), (3, 6), (6, 8), (8, 10)]
        assert "no worker is there" in told.reason

    @pytest.mark.parametrize(
        ("job", "seats", "chosen", "why"),
        [
            (Job(num_inputs=10), 3, Strategy.DATA_PARALLEL, "10 inputs are all that can be divided"),
            (Job(functions=("a", "b")), 3, Strategy.FUNCTION_PARALLEL, "2 functions are all"),
            (Job(models=("a", "b")), 3, Strategy.ENSEMBLE, "2 models are all"),
            (Job(functions=("a", "b"), num_inputs=10), 3, Strategy.DATA_PARALLEL, "10 inputs keep 3 of 3 devices busy"),
            (Job(functions=("a", "b"), num_inputs=10), 2, Strategy.FUNCTION_PARALLEL, "2 functions keep 2 of 2"),
        ],
    )
    def test_auto_says_why(self, job, seats, chosen, why):
        told = split(Strategy.AUTO, job, [Seat()] * seats)
        assert told.strategy is chosen
        assert why in told.reason

    @pytest.mark.parametrize(
        ("strategy", "job", "error"),
        [
            (Strategy.AUTO, Job(), "there is nothing to split: give `inputs`"),
            (Strategy.DATA_PARALLEL, Job(functions=("a",)), "there are none"),
            (Strategy.FUNCTION_PARALLEL, Job(num_inputs=1), "there are none"),
            (Strategy.ENSEMBLE, Job(num_inputs=1), "there are none"),
            (Strategy.ENSEMBLE, Job(models=("a",), devices=("b",)), "name one of the two"),
            (Strategy.ENSEMBLE, Job(models=("a", "a")), "'a' stands there twice"),
            (Strategy.FUNCTION_PARALLEL, Job(functions=tuple(map(str, range(1001)))), "1000 are allowed"),
        ],
    )
    def test_what_cannot_be_split(self, strategy, job, error):
        with pytest.raises(SettingsError, match=error):
            split(strategy, job, self.SEATS)

    @pytest.mark.parametrize("strategy", [Strategy.PIPELINE, Strategy.MODEL_PARALLEL])
    def test_not_yet(self, strategy):
        with pytest.raises(CannotSplitYet, match="stages"):
            split(strategy, Job(num_inputs=3), self.SEATS)


ENDS = st.sampled_from(["completed", "failed", "cancelled"])


@settings(max_examples=40)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_whatever_fails_the_shares_that_count_are_the_whole(sizes, data):
    """Each input is in exactly one of them, however often shares are cut anew."""
    begins = [sum(sizes[:number]) for number in range(len(sizes))]
    shares = [
        Share(key=str(number), begin=begin, end=begin + size)
        for number, (begin, size) in enumerate(zip(begins, sizes, strict=True))
    ]
    ends: dict[str, str] = {}
    for _ in range(20):
        told = list(tree(shares, ends, split_anew=True))
        keys = [share.key for share, _ in told]
        assert len(keys) == len(set(keys))
        counting = sorted((share.begin, share.end) for share, counts in told if counts)
        assert [place for begin, end in counting for place in range(begin, end)] == list(range(sum(sizes)))
        open_keys = [key for key in keys if key not in ends]
        if not open_keys:
            break
        ends[data.draw(st.sampled_from(open_keys))] = data.draw(ENDS)
    assert [share for share, counts in tree(shares, ends, split_anew=False) if counts] == shares


def test_a_share_is_cut_a_few_times_and_no_further():
    share = Share(key="0", begin=0, end=1000, label="fast")
    depth = 0
    while parts := anew(share):
        assert sum(part.weight for part in parts) == share.weight
        assert {part.label for part in parts} == {""}
        share, depth = parts[0], depth + 1
    assert depth == MAX_DEPTH
    assert anew(Share(key="0", begin=4, end=5)) == ()
    assert anew(Share(key="0", function="f")) == ()


class TestProgress:
    def test_percentage_goes_by_inputs(self):
        parts = [(Share(key="0", begin=0, end=90), "running"), (Share(key="1", begin=90, end=100), "failed")]
        assert percentage(parts) == 10
        assert percentage([(Share(key=str(number)), "completed" if number else "pending") for number in range(3)]) == 66

    @pytest.mark.parametrize(
        ("statuses", "told"),
        [
            (["pending", "waiting"], JobStatus.PENDING),
            (["pending", "assigned"], JobStatus.IN_PROGRESS),
            (["pending", "completed"], JobStatus.IN_PROGRESS),
            (["completed", "completed"], JobStatus.COMPLETED),
            (["completed", "failed"], JobStatus.FAILED),
            (["completed", "expired"], JobStatus.FAILED),
        ],
    )
    def test_status(self, statuses, told):
        assert status_of(statuses, cancelled=False) is told

    def test_cancelled_when_nothing_goes_on(self):
        assert status_of(["running", "cancelled"], cancelled=True) is JobStatus.IN_PROGRESS
        assert status_of(["completed", "cancelled"], cancelled=True) is JobStatus.CANCELLED
        assert status_of(["pending"], cancelled=False, begun=True) is JobStatus.IN_PROGRESS
