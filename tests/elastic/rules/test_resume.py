"""Whose state all go on with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.rules.resume import LoopPhase, Position, choose_sources, hooks_are_done, send_from
from dtf_lightning.errors import ProtocolError


def at(step: int, batches: int | None = None, phase: LoopPhase = LoopPhase.BATCH, **fields) -> Position:
    return Position(True, step, step if batches is None else batches, phase, **fields)


FRESH = Position()


def test_phases_are_in_time_order():
    """At an equal number of finished batches: end of batch, end of epoch, start of epoch, batch, done."""
    in_order = ["advance_end", "epoch_end", "epoch_start", "batch", "done"]
    assert [phase.value for phase in sorted(LoopPhase)] == in_order


def test_the_newest_wins():
    """One survivor stepped before its peer died in the all-reduce, the others did not: they are rolled forward."""
    plan = choose_sources([at(7), at(8), at(7)])
    assert (plan.first_holder, plan.holders, plan.receivers) == (1, (1,), (0, 2))
    assert plan.sources == {0: 1, 2: 1}


@pytest.mark.parametrize(
    "newest",
    [at(8, 9), at(7, 15), at(7, 14, LoopPhase.DONE)],
    ids=["step", "batches", "phase"],
)
def test_fields_in_order(newest):
    """Step before batches before phase (with accumulation two batches make a step)."""
    assert choose_sources([at(7, 14, LoopPhase.BATCH), newest]).first_holder == 1


def test_newcomers_receive():
    """A newcomer that loaded an old checkpoint of a later step does not outrank who trained in this run."""
    plan = choose_sources([at(3), Position(trained=False, global_step=900), at(3)])
    assert (plan.holders, plan.receivers) == ((0, 2), (1,))


def test_receivers_are_spread():
    """Five newcomers, two holders: round robin."""
    plan = choose_sources([at(3), FRESH, FRESH, at(3), FRESH, FRESH, FRESH])
    assert plan.sources == {1: 0, 2: 3, 4: 0, 5: 3, 6: 0}


def test_nobody_trained():
    """A start: equal positions do not mean equal weights, so one rank sends to all."""
    plan = choose_sources([FRESH, FRESH, FRESH])
    assert (plan.first_holder, plan.holders, plan.receivers) == (0, (0,), (1, 2))


def test_nobody_trained_but_one_loaded_a_checkpoint():
    """The newest checkpoint wins."""
    assert choose_sources([FRESH, Position(global_step=50)]).first_holder == 1


def test_more_than_a_step_apart():
    """Somebody stepped without its peers: an error that names both ranks."""
    with pytest.raises(ProtocolError, match=r"rank 1 is at .*global_step=9.*rank 0 at .*global_step=7"):
        choose_sources([at(7), at(9), FRESH])


def test_same_place_other_samples():
    """Two ranks at the same step and batch have consumed different samples."""
    with pytest.raises(ProtocolError, match="expected at most one optimizer step"):
        choose_sources([at(7, samples=32), at(7, samples=64)])


def test_no_positions():
    """Nobody to choose from."""
    with pytest.raises(ValueError, match="at least one rank"):
        choose_sources([])


positions = st.builds(
    at, st.integers(5, 6), st.integers(5, 6), st.sampled_from(LoopPhase), epoch=st.just(0), samples=st.just(0)
)


@given(st.lists(st.just(FRESH) | positions, min_size=1, max_size=9))
def test_everybody_ends_up_with_the_newest(ranks):
    """Holders and receivers are everybody once, each receiver has a holder, loads differ by one at most."""
    plan = choose_sources(ranks)
    assert sorted(plan.holders + plan.receivers) == list(range(len(ranks)))
    assert set(plan.sources) == set(plan.receivers)
    assert all(ranks[source] == max(ranks) for source in plan.sources.values())
    loads = [list(plan.sources.values()).count(holder) for holder in plan.holders]
    assert max(loads) - min(loads) <= 1


@given(positions)
def test_positions_round_trip(position):
    """Through JSON's types and back."""
    assert Position.from_json(position.to_json()) == position


def test_other_json_is_a_protocol_error():
    """An unknown phase or field."""
    with pytest.raises(ProtocolError, match="expected a position"):
        Position.from_json({"phase": "lunch"})


@given(st.lists(st.tuples(st.just(FRESH) | positions, st.booleans()), min_size=1, max_size=6))
def test_hooks_are_left_out_if_nobody_who_trained_needs_them(ranks):
    """One who has trained and is not through them, or is behind, needs them, and with it all; newcomers do not count."""
    newest = max(position for position, _ in ranks)
    needed = [not done or position != newest for position, done in ranks if position.trained]
    assert hooks_are_done(*zip(*ranks, strict=True)) == (needed != [] and not any(needed))


def test_only_the_able_send() -> None:
    """Holders that could not pack their state are left out, and the receivers spread over the others."""
    newest, newcomer = Position(trained=True, global_step=5), Position()
    plan = choose_sources([newest, newest, newest, newcomer, newcomer, newcomer])
    assert send_from(plan, {0, 2}).sources == {3: 0, 4: 2, 5: 0}
    assert send_from(plan, {1}).sources == {3: 1, 4: 1, 5: 1}
    assert send_from(plan, {0, 1, 2}) == plan
