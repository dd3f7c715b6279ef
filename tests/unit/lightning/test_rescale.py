"""A rescale of a run of one changes nothing but the time: same losses, weights, hooks, metrics as undisturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.run_of_one import Disturbance, Net, Outcome, RunOfOne, assert_same_training, assert_same_weights, fit

PLACES = [
    "on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "after_step", "on_train_batch_end", "on_validation_start", "validation_step",
    "on_validation_batch_end", "on_validation_end", "on_train_epoch_end",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plain Lightning's outcome by trainer arguments and scheduler; each is trained once."""
    known: dict[str, Outcome] = {}

    def get(scheduler: str | None = None, **arguments: Any) -> Outcome:
        key = repr((scheduler, sorted(arguments.items())))
        if key not in known:
            folder = tmp_path_factory.mktemp("plain")
            known[key] = fit(folder, elastic=False, model=Net(scheduler=scheduler), **arguments)
        return known[key]

    return get


@pytest.mark.parametrize("step", [0, 2, 3, 4, 5, 6, 9, 14])
def test_planned(tmp_path: Path, run: RunOfOne, undisturbed: Any, step: int) -> None:
    """Prepare at every kind of place in an epoch of six steps; the run stops two boundaries later and goes on."""
    plain = undisturbed("step")
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"), disturbances=[Disturbance("training_step", step)]
    )
    assert run.num_generations() == 2
    assert_same_training(elastic, plain)
    assert elastic.trace == plain.trace


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["told", "collective"])
def test_unplanned(tmp_path: Path, run: RunOfOne, undisturbed: Any, place: str, kind: str) -> None:
    """A peer dies at every place of a step, of a validation and of an epoch's end, in mid-run."""
    plain = undisturbed("step")
    step = {"on_train_epoch_start": 6, "on_train_epoch_end": 12}.get(place, 12 if "validation" in place else 8)
    elastic = fit(
        tmp_path,
        elastic=True,
        run=run,
        model=Net(scheduler="step"),
        disturbances=[Disturbance(place, step, kind)],
    )
    assert run.num_generations() == 2
    assert_same_weights(elastic, plain)
    assert elastic.learning_rates() == plain.learning_rates()
    assert elastic.trainer.global_step == plain.trainer.global_step
    assert elastic.metrics() == plain.metrics()
