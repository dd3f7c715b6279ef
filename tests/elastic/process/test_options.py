"""A death under every option of training that has a state of its own: by default at one place or two, else at more."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.cells import rest
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

CALLBACKS = ("early_stopping", "lr_monitor", "ema", "best")


def dies(at, step, rank=0, *, default=True, **options):
    name = "-".join(f"{key}={value}" for key, value in options.items() if key != "callbacks")
    name = name or "callbacks"
    make = pytest.param if default else rest
    return make(Training(faults=(Fault(at=at, step=step, rank=rank),), **options), id=f"{name}-{at}-{step}")


@pytest.mark.parametrize(
    "training",
    [
        dies("forward", 2, accumulate=3, default=False),
        dies("backward", 2, 1, accumulate=3),
        dies("after_optimizer_step", 3, accumulate=3, default=False),  # the epoch's last step, of two batches
        dies("data_loading", 16, num_data_workers=2, default=False),
        dies("data_loading", 16, 1, num_data_workers=2, persistent_workers=True),
        dies("data_worker", 16, num_data_workers=2),
        dies("validation", 2, val_check_interval=0.25),
        dies("forward", 7, 1, val_check_interval=0.25, default=False),
        dies("backward", 4, shuffle=False),
        dies("forward", 2, num_samples=2, batch_norm=False, max_epochs=4),
        dies("backward", 4, precision="bf16-mixed"),
        dies("forward", 13, schedule="epoch", default=False),
        dies("epoch_end", 11, 1, schedule="epoch"),
        dies("backward", 4, schedule="onecycle"),  # two take more steps than three: past the end of the cycle
        dies("forward", 13, schedule="plateau", default=False),
        dies("validation", 11, schedule="plateau"),
        dies("forward", 4, max_steps=15, default=False),
        dies("forward", 14, 1, max_steps=15),
        dies("forward", 4, validates=False),
        dies("forward", 13, callbacks=CALLBACKS),
        dies("after_optimizer_step", 4, callbacks=CALLBACKS, default=False),
        dies("batch_end", 4, callbacks=CALLBACKS, default=False),
        dies("validation", 11, callbacks=CALLBACKS, default=False),
        dies("checkpoint_save", 11, callbacks=CALLBACKS),
        dies("epoch_end", 11, callbacks=CALLBACKS, default=False),
    ],
)
def test_option(make_run, training):
    """One of three dies; the two others come to the same end, with every sample once."""
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    if training.max_steps > 0:
        run.check(survivors=2, complete=False)
        assert run.audit().committed_steps == training.max_steps
    else:
        run.check(survivors=2, epochs=training.max_epochs)


def test_dropped_tail(make_run):
    """`tail="drop"`: at most world size - 1 samples of an epoch are left out, none is repeated."""
    run = make_run(Training(faults=(Fault(at="backward", step=4, rank=0),), tail="drop", num_samples=137), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2, dropped=2)


def test_early_stop(make_run):
    """EarlyStopping's decision in the epoch of a death: both survivors stop after it."""
    training = Training(faults=(Fault(at="forward", step=13, rank=0),), callbacks=("early_stopping_now",), max_epochs=9)
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
