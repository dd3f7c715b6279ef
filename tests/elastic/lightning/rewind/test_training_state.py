"""Whatever training holds goes from one trainer into another, fresh one, and nothing else changes there."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import Precision
from torch.optim.swa_utils import get_ema_avg_fn

from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.rewind.training_state import dump_start, dump_state, load_start, load_state
from support.elastic.run_of_one import Net, plain_loader, val_loader

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class Scaling(Precision):
    """A precision plugin with a gradient scaler's state, as far as a checkpoint sees it."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def state_dict(self) -> dict[str, float]:
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.scale = state["scale"]


class Hooked(Net):
    """A user's own addition to checkpoints."""

    extra = 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["extra"] = self.extra

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.extra = checkpoint["extra"]


class Counting(Callback):
    count = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Module(pl.LightningDataModule):
    position = 0

    def train_dataloader(self) -> DataLoader:
        return plain_loader()

    def val_dataloader(self) -> DataLoader:
        return val_loader()

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


class Exchange(Callback):
    """Dumps or loads at the start of training, in the middle of nothing else."""

    def __init__(self, state: dict[str, Any] | None = None) -> None:
        self.state, self.progress = state, TrainingProgress()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.state is None and trainer.global_step == 8:
            trainer.should_stop = True
            self.progress.dataset_size, self.progress.batch_samples = 24, 4
            self.progress.consumed, self.progress.boundary = 8, None
            self.state = pickle.loads(pickle.dumps(dump_state(trainer, self.progress)))

    def on_train_start(self, trainer: pl.Trainer, pl_module: Net) -> None:
        if self.state is not None:
            load_state(trainer, self.progress, self.state)
            self.dumped_again = pickle.loads(pickle.dumps(dump_state(trainer, self.progress)))
            trainer.should_stop = True
            trainer.fit_loop.max_epochs = 0


def trainer_with(folder: Path, exchange: Exchange, scheduler: str, scale: float) -> tuple[pl.Trainer, Hooked]:
    model = Hooked(scheduler=scheduler)
    callbacks = [
        Counting(), *(average(avg_fn=get_ema_avg_fn(0.5)) for average in WEIGHT_AVERAGING), EarlyStopping("val_loss", mode="max"),
        GradientAccumulationScheduler({1: 2}), ModelCheckpoint(folder / "ckpt", monitor="val_loss"), exchange,
    ]  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=3, plugins=[Scaling(scale)], callbacks=callbacks, default_root_dir=folder,
        logger=CSVLogger(folder), enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    return trainer, model


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("scheduler", ["onecycle", "plateau", "epoch"])
def test_round_trip(tmp_path: Path, scheduler: str) -> None:
    """Into a trainer that has its own weights, folders and counters; what it dumps then is what it was given."""
    sender = Exchange()
    trainer, model = trainer_with(tmp_path / "a", sender, scheduler, scale=512.0)
    model.extra, module = 7, Module()
    module.position = 3
    trainer.fit(model, datamodule=module)
    state = sender.state
    assert state is not None

    receiver = Exchange(state)
    other, received = trainer_with(tmp_path / "b", receiver, scheduler, scale=1.0)
    received_module = Module()
    other.fit(received, datamodule=received_module)

    again = receiver.dumped_again
    for callback in (*state["checkpoint"]["callbacks"].values(), *again["checkpoint"]["callbacks"].values()):
        callback.pop("current_score", None)  # ModelCheckpoint saves, but does not load it
    for name, value in state["checkpoint"].items():
        assert equal(again["checkpoint"][name], value), name
    assert equal(again["start"], state["start"])
    assert equal(again["metrics"], state["metrics"])
    assert again["progress"] == state["progress"]
    assert again["should_stop"] is True
    # what the docstring names, one by one
    checkpoint = state["checkpoint"]
    assert received.extra == 7
    assert received_module.position == 3
    assert other.precision_plugin.scale == 512.0
    assert other.accumulate_grad_batches == 2
    assert receiver.progress.consumed == 8
    assert other.checkpoint_callback.dirpath == str(tmp_path / "a" / "ckpt")
    assert other.logger.version == trainer.logger.version
    assert "averaging_state" in checkpoint or "current_model_state" in checkpoint or not WEIGHT_AVERAGING
    assert checkpoint["lr_schedulers"][0]["last_epoch"] > 0
    assert checkpoint["callbacks"]["Counting"]["count"] > 0


def test_start(tmp_path: Path) -> None:
    """Members of the first generation adopt the first one's folders and logger version."""
    starts: list[dict[str, Any]] = []

    class AtStart(Exchange):
        def on_train_start(self, trainer: pl.Trainer, pl_module: Net) -> None:
            if starts:
                load_start(trainer, starts[0])
            starts.append(dump_start(trainer))
            trainer.should_stop = True

    for name in ("a", "b"):
        trainer, model = trainer_with(tmp_path / name, AtStart({}), "onecycle", 1.0)
        trainer.fit(model, plain_loader(batch_size=4 if name == "a" else 8), val_loader())
    assert equal(starts[1], starts[0])
