"""kill -9 in every phase of training: the others go on, hold the same state, and no sample is lost or repeated.

By default rank 0 dies in every second phase and rank 1 in the others; `make test-matrix` runs every cell.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.cells import each_row_once
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

STEPS = 11
"""Per epoch, with three workers."""

PHASES = [
    ("train_start", 0, {}),
    ("data_loading", 16, {}),
    ("forward", 0, {}),
    ("forward", 4, {}),
    ("backward", 4, {}),
    ("before_optimizer_step", 4, {}),
    ("after_optimizer_step", 4, {}),
    ("batch_end", 4, {}),
    ("logging", 4, {}),
    ("validation", STEPS, {}),
    ("checkpoint_save", 4, {"checkpoint_every": 4}),
    ("epoch_end", STEPS, {}),
    ("forward", 2 * STEPS - 1, {}),
    ("epoch_end", 2 * STEPS, {}),
    ("train_end", 2 * STEPS, {}),
]


def cell(phase, rank):
    return f"{phase[0]}-{phase[1]}-{rank}"


@pytest.mark.parametrize(("phase", "rank"), each_row_once(PHASES, (0, 1), cell))
def test_worker_dies(make_run, phase, rank):
    """One of three dies there; the two others finish both epochs together."""
    at, step, options = phase
    run = make_run(Training(faults=(Fault(at=at, step=step, rank=rank),), **options), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)


EPOCH = Training(max_epochs=1, validates=False, recipe="gathers_outputs")
NUM_OUTS = 3 * STEPS


def test_rank_zero_dies_while_it_saves_behind_the_modules_hook(make_run):
    """The hook has forgotten the epoch's outputs on all ranks: it does not run again, and what it logged stays."""
    run = make_run(replace(EPOCH, faults=(Fault(at="checkpoint_save", step=STEPS, rank=0),)), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=1)
    assert [result["own"]["metrics"]["num_outs"] for result in run.results().values()] == [NUM_OUTS] * 2


def test_a_modules_hook_fails_on_one_rank(make_run):
    """The others' is done, and all run it again together, because it has collectives, with what they had gathered."""
    run = make_run(replace(EPOCH, recipe="gathers_outputs_apart"), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over()
    run.check(survivors=3, epochs=1)
    assert [result["own"]["metrics"]["num_outs"] for result in run.results().values()] == [NUM_OUTS] * 3


@pytest.mark.parametrize("victim", ["a", "b"])
def test_worker_dies_in_setup(make_run, victim):
    """A node that has not joined yet dies in its set-up, as the first to come or not; the two others never miss it.

    The victim is a node, not a rank: before the first generation ranks are provisional, and a dead node's is given to
    whoever comes next.
    """
    dies = Training(faults=(Fault(at="setup"),))
    run = make_run(Training(), **exactly(2))
    for name in "abc":
        run.start(name, training=dies if name == victim else None)
    codes = run.wait_until_over(failed=1)
    assert codes[victim]
    run.check(survivors=2, epochs=2)
