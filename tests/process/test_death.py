"""kill -9 in every phase of training: the others go on, hold the same state, and no sample is lost or repeated."""

from __future__ import annotations

import pytest

from dtf_lightning.testing.faults import Fault
from support.elastic_run import exactly
from support.elastic_training import Training

pytestmark = pytest.mark.process

STEPS = 11
"""Per epoch, with three workers."""

PHASES = [
    ("setup", None, {}),
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


def phase_id(value):
    return "-".join(map(str, value[:2])) if isinstance(value, tuple) else None


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("phase", PHASES, ids=phase_id)
def test_worker_dies(make_run, phase, rank):
    """One of three dies there; the two others finish both epochs together."""
    at, step, options = phase
    run = make_run(Training(faults=(Fault(at=at, step=step, rank=rank),), **options), **exactly(2 if at == "setup" else 3))
    run.start("a", "b", "c")
    codes = run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
