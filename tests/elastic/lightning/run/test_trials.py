"""Trials inside a fit (learning rate and batch size finders, a loop that a hook runs) are refused before they train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from lightning.pytorch.tuner import Tuner

from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.errors import SettingsError
from support.elastic.run_of_one import Net, RunOfOne, fit, train_loader, val_loader


class Tunable(Net):
    """What the finders look for, and loaders that a batch size finder can make anew."""

    lr = 0.05
    batch_size = 4

    def train_dataloader(self) -> Any:
        return train_loader(batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return val_loader()


def trainer(folder: Path, *callbacks: Callback) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[ElasticCallback(), *callbacks],
    )  # fmt: skip


class AtMilestones(LearningRateFinder):
    """The recipe of Lightning's documentation: looks for a learning rate at some epochs, not as `fit` begins."""

    def on_fit_start(self, *_: Any) -> None: ...

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.lr_find(trainer, pl_module)


class RunsTheLoop(Callback):
    """A trial of the user's own: runs the fit loop inside one of `fit`'s hooks."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.run_it)

    def run_it(self, trainer: Any, *_: Any) -> None:
        trainer.fit_loop.run()


class FitsWithAnother(Callback):
    """Fits with a second elastic trainer before the first one has begun."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        fit(Path(trainer.default_root_dir), elastic=True)


FINDERS: dict[str, tuple[Any, str]] = {
    "learning_rate": (
        lambda: LearningRateFinder(num_training_steps=3),
        r"LearningRateFinder .*without torchrun.*Tuner\(trainer\).lr_find\(model\).*Remove it",
    ),
    "at_milestones": (AtMilestones, r"AtMilestones .*without torchrun.*Tuner\(trainer\).lr_find\(model\)"),
    "batch_size": (
        lambda: BatchSizeFinder(max_trials=1),
        r"BatchSizeFinder .*without torchrun.*Tuner\(trainer\).scale_batch_size\(model\).*Remove it",
    ),
}


@pytest.mark.parametrize("name", FINDERS)
def test_finders(tmp_path: Path, run: RunOfOne, name: str) -> None:
    """Their trial steps were taken for the run: nothing was trained, and `fit` did not return."""
    make, message = FINDERS[name]
    model = Tunable()
    with pytest.raises(SettingsError, match=message):
        trainer(tmp_path, make()).fit(model)
    assert model.losses == []
    assert "finished" not in run.kinds()


@pytest.mark.parametrize("method", ["fit", "validate"])
def test_tuner_before_fit(tmp_path: Path, run: RunOfOne, method: str) -> None:
    """`Tuner` fits, or validates, with a finder among the callbacks: refused before the first trial, on every method."""
    model = Tunable()
    with pytest.raises(SettingsError, match="without torchrun"):
        Tuner(trainer(tmp_path)).scale_batch_size(model, method=method, max_trials=1)
    with pytest.raises(SettingsError, match="without torchrun"):
        Tuner(trainer(tmp_path)).lr_find(model, method="fit", num_training=3)
    assert model.losses == []


@pytest.mark.parametrize(
    "hook", ["on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_end", "on_validation_end"]
)
def test_a_loop_that_a_hook_runs(tmp_path: Path, run: RunOfOne, hook: str) -> None:
    """Nobody can tell its steps from the run's: the error names the hook."""
    with pytest.raises(SettingsError, match=rf"fit_loop.run\(\) was called in the hook {hook}"):
        fit(tmp_path, elastic=True, callbacks=[RunsTheLoop(hook)])
    assert "finished" not in run.kinds()


def test_a_fit_inside_a_fit(tmp_path: Path, run: RunOfOne) -> None:
    """A second trainer would take the run away from the first."""
    with pytest.raises(SettingsError, match=r"another Trainer of this process is in `fit`.*without ElasticCallback"):
        fit(tmp_path, elastic=True, callbacks=[FitsWithAnother()])


def test_a_fit_after_a_failed_validation(tmp_path: Path, run: RunOfOne) -> None:
    """A hook that raised, in a validation that the script survives, does not count as a hook that runs."""

    class FailsOnce(Net):
        fails = True

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.fails:
                self.fails = False
                raise ValueError("on purpose")
            super().validation_step(batch, batch_idx)

    model = FailsOnce()
    with pytest.raises(ValueError, match="on purpose"):
        pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False).validate(
            model, val_loader(), verbose=False
        )
    assert fit(tmp_path, elastic=True, model=model).trainer.global_step == 18


def test_inert_without_torchrun(tmp_path: Path) -> None:
    """Where the callback does nothing, finders work: this is what the refusal tells the user to do."""
    model = Tunable()
    fit(tmp_path, elastic=True, model=model, callbacks=[LearningRateFinder(num_training_steps=3)], max_epochs=1)
    assert len(model.losses) > 6
