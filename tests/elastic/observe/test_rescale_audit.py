"""What a rescale cost, from hand-written ledgers: each kind of loss shows up, in the row it is charged to."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.observe.ledger import Ledger
from dtf_lightning.elastic.observe.rescale_audit import rescale_costs

SAMPLES = 8


@pytest.fixture
def ledgers(tmp_path):
    """Two workers, a and b, that share generation 1 from step 0 on; each step takes one sample per worker."""
    made = [Ledger(tmp_path / f"{name}.jsonl") for name in "ab"]
    for rank, ledger in enumerate(made):
        ledger.begin(generation=1, rank=rank, world_size=2, step=0, epoch=0)
    yield made
    for ledger in made:
        ledger.close()


def draw(ledger, step, *samples, generation=1, epoch=0, padding=0):
    ledger.draw(generation=generation, rank=0, epoch=epoch, step=step, samples=list(samples), padding=padding)


def alone(ledger, step, last):
    """The ledger's worker goes on alone in generation 2 from `step` on, and ends with `last` committed steps."""
    ledger.begin(generation=2, rank=0, world_size=1, step=step, epoch=0)
    for position in range(step, last):
        draw(ledger, position, position, generation=2)
    ledger.end(generation=2, rank=0, step=last)


def costs(ledgers, size=SAMPLES):
    return rescale_costs([ledger.path for ledger in ledgers], size)


def test_a_clean_leave_costs_nothing(ledgers):
    """Two steps together, b leaves at the boundary, a draws the rest alone."""
    a, b = ledgers
    for step in range(2):
        draw(a, step, 2 * step)
        draw(b, step, 2 * step + 1)
    a.begin(generation=2, rank=0, world_size=1, step=2, epoch=0)
    for step in range(2, 6):
        draw(a, step, step + 2, generation=2)
    a.end(generation=2, rank=0, step=6)
    first, second = costs(ledgers)
    assert (first.world_size, first.step, first.steps) == (2, 0, 2)
    assert (second.world_size, second.step, second.steps) == (1, 2, 4)
    for row in (first, second):
        assert (row.steps_lost, row.steps_redone, row.samples_lost, row.samples_repeated) == (0, 0, 0, 0)


def test_a_step_in_flight_is_redone_not_lost(ledgers):
    """b dies in step 1: a draws it again."""
    a, b = ledgers
    draw(a, 0, 0)
    draw(b, 0, 1)
    draw(a, 1, 2)
    draw(b, 1, 3)
    a.begin(generation=2, rank=0, world_size=1, step=1, epoch=0)
    for step, sample in enumerate(range(2, SAMPLES), start=1):
        draw(a, step, sample, generation=2)
    a.end(generation=2, rank=0, step=7)
    _, row = costs(ledgers)
    assert (row.steps_redone, row.steps_lost, row.samples_lost, row.samples_repeated) == (1, 0, 0, 0)


def test_steps_that_a_survivor_had_committed_are_lost(ledgers):
    """a had drawn step 3, so it had committed 0 to 2; generation 2 begins at 1."""
    a, b = ledgers
    for step in range(4):
        draw(a, step, step)
    draw(b, 0, 4)
    alone(a, 1, 3)
    _, row = costs(ledgers)
    assert (row.steps_lost, row.steps_redone) == (2, 1)


def test_what_only_the_dead_had_is_nobodys_loss(ledgers):
    """b was one step ahead when it died: no worker that lives on had committed that step."""
    a, b = ledgers
    for step in range(2):
        draw(a, step, step)
        draw(b, step, step + 2)
    draw(b, 2, 7)
    alone(a, 1, 3)
    _, row = costs(ledgers)
    assert (row.steps_lost, row.steps_redone) == (0, 2)


def test_a_jump_over_steps_is_charged_to_who_should_have_drawn_them(ledgers):
    """Generation 2 begins at step 5, generation 1 has drawn 0 and 1 only."""
    a, b = ledgers
    for step in range(2):
        draw(a, step, step)
        draw(b, step, step + 2)
    alone(a, 5, 6)
    first, second = costs(ledgers)
    assert (first.steps_lost, second.steps_lost) == (3, 0)


def test_samples_lost_and_repeated(ledgers):
    """Sample 1 twice, in generation 2; 5 to 7 never, in the epoch that generation 2 ended. Padding is neither."""
    a, b = ledgers
    draw(a, 0, 0)
    draw(b, 0, 1)
    a.begin(generation=2, rank=0, world_size=1, step=1, epoch=0)
    for step, sample in enumerate((1, 2, 3, 4), start=1):
        draw(a, step, sample, generation=2)
    draw(a, 5, 0, generation=2, padding=1)
    a.end(generation=2, rank=0, step=6)
    first, second = costs(ledgers)
    assert (first.samples_lost, first.samples_repeated) == (0, 0)
    assert (second.samples_lost, second.samples_repeated, second.padding) == (3, 1, 1)


def test_an_epoch_that_nobody_trained_is_lost_whole(ledgers):
    """Epochs 0 and 2 are on record, 1 is not."""
    a, b = ledgers
    for epoch in (0, 2):
        for position in range(4):
            step = 2 * epoch + position
            draw(a, step, 2 * position, epoch=epoch)
            draw(b, step, 2 * position + 1, epoch=epoch)
    for ledger in ledgers:
        ledger.end(generation=1, rank=0, step=8)
    (row,) = costs(ledgers)
    assert row.samples_lost == SAMPLES


def test_draws_of_a_generation_that_was_never_begun(ledgers):
    """A mixed-up folder is said, not counted."""
    a, _ = ledgers
    draw(a, 0, 0, generation=3)
    with pytest.raises(ValueError, match="generation 3, which this worker never began"):
        costs(ledgers)


def test_no_ledgers(tmp_path):
    """Nothing was trained: no rows."""
    assert rescale_costs([], SAMPLES) == []
