"""An elastic run of one that nothing disturbs does exactly what plain Lightning does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest

from support.elastic.run_of_one import (
    Net,
    RunOfOne,
    assert_same_training,
    fit,
    plain_loader,
    train_loader,
    val_loader,
)  # fmt: skip

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

TRAINERS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "sanity_check": {"num_sanity_val_steps": 2},
    "overfit_int": {"overfit_batches": 2},
    "overfit_float": {"overfit_batches": 0.5},
    "limit_int": {"limit_train_batches": 3},
    "limit_float": {"limit_train_batches": 0.5},
    "limit_zero": {"limit_train_batches": 0},
    "fast_dev_run": {"fast_dev_run": True},
    "max_steps": {"max_steps": 8, "max_epochs": -1},
    "no_epochs": {"max_epochs": 0},
    "reload": {"reload_dataloaders_every_n_epochs": 1},
    "barebones": {"barebones": True},
    "accumulate": {"accumulate_grad_batches": 4},
    "val_interval_int": {"val_check_interval": 2},
    "val_interval_float": {"val_check_interval": 0.5},
    "val_over_epochs": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "val_every_second_epoch": {"check_val_every_n_epoch": 2},
    "clip": {"gradient_clip_val": 0.1},
    "bfloat16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("name", TRAINERS)
def test_trainer_arguments(tmp_path: Path, run: RunOfOne, name: str) -> None:
    """Each argument that steers the loops: equal losses, sample order, weights, metrics, and hooks in equal order."""
    arguments = {"max_epochs": 2, **TRAINERS[name]}
    plain_data = plain_loader(shuffle=not name.startswith("overfit"))
    plain = fit(tmp_path, elastic=False, loader=plain_data, **arguments)
    elastic = fit(tmp_path, elastic=True, run=run, **arguments)
    assert_same_training(elastic, plain)
    assert elastic.trace == plain.trace
    trained = ["trained"] if elastic.trainer.global_step > 1 else []  # said before the second step
    assert run.kinds() == ["hello", "ready", "active", *trained, "loop_ends", "finished"]


@pytest.mark.parametrize("scheduler", ["step", "epoch", "onecycle", "plateau"])
def test_schedulers(tmp_path: Path, run: RunOfOne, scheduler: str) -> None:
    plain = fit(tmp_path, elastic=False, model=Net(scheduler=scheduler))
    assert_same_training(fit(tmp_path, elastic=True, run=run, model=Net(scheduler=scheduler)), plain)


@pytest.mark.parametrize("loader", [{"drop_last": True, "batch_size": 7}, {"batch_size": 7}, {"batch_size": 100}])
def test_loader_arguments(tmp_path: Path, run: RunOfOne, loader: dict[str, Any]) -> None:
    """Incomplete last batches, dropped or not, and a batch larger than the data."""
    plain = fit(tmp_path, elastic=False, loader=plain_loader(**loader))
    assert_same_training(fit(tmp_path, elastic=True, run=run, loader=train_loader(**loader)), plain)


def test_datamodule(tmp_path: Path, run: RunOfOne) -> None:
    class Module(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return train_loader()

        def val_dataloader(self) -> DataLoader:
            return val_loader()

    elastic = fit(tmp_path, elastic=True, run=run, datamodule=Module())
    assert_same_training(elastic, fit(tmp_path, elastic=False))


def test_one_loader_in_a_list(tmp_path: Path, run: RunOfOne) -> None:
    """Lightning hands the step a list of one batch then; one loader can be divided."""

    class OfList(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch[0], batch_idx)

    elastic = fit(tmp_path, elastic=True, run=run, model=OfList(), loader=[train_loader()])
    assert_same_training(elastic, fit(tmp_path, elastic=False, model=OfList(), loader=[plain_loader()]))


class Estimating(Net):
    """Asks how many steps there will be, for which Lightning makes the training loader in set-up."""

    def configure_optimizers(self) -> Any:
        self.estimated = self.trainer.estimated_stepping_batches
        return super().configure_optimizers()


def test_provisional_place(tmp_path: Path, start_run: Any) -> None:
    """Set up as one of three (sanity check), then alone: all data is this worker's, and optimizers are configured for it."""
    run = start_run(rank=1, world_size=3)
    elastic = fit(tmp_path, elastic=True, run=run, model=Estimating(), num_sanity_val_steps=1)
    assert elastic.model.estimated == 18  # set-up saw a third of the steps; configured anew
    assert_same_training(elastic, fit(tmp_path, elastic=False, model=Estimating(), num_sanity_val_steps=1))
    assert elastic.model.validated == [*range(8)] * 3
