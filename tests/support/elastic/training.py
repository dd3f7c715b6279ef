"""The training that process tests disturb: small, with everything that must survive a rescale, described by data."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch._dynamo  # seconds at the first DDP, if it is not there
from lightning.pytorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    LearningRateMonitor,
    ModelCheckpoint,
    RichProgressBar,
    TQDMProgressBar,
)
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn
from torch.utils.data import DataLoader, Dataset

from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.elastic.lightning.callbacks.divergence_stopping import DivergenceStopping
from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING
from dtf_lightning.elastic.lightning.reporting import straggler_probe
from dtf_lightning.elastic.observe import stragglers
from dtf_lightning.elastic.testkit.faults import Fault, FaultInjector
from support.elastic.data_kinds import InShards, InStreams
from support.elastic.disturbed_saves import disturbed_checkpoints

FEATURES = 16
SLOW = 0.02


@dataclass(frozen=True, kw_only=True)
class Training:
    """What to train, and what goes wrong."""

    faults: tuple[Fault, ...] = ()
    num_samples: int = 132
    batch_size: int = 4
    max_epochs: int = 2
    max_steps: int = -1
    accumulate: int = 1
    num_data_workers: int = 0
    persistent_workers: bool = False
    data: str = "map"
    """Or `shards`, `streams`, `forgetful_streams`, `several`: two loaders side by side, one of which ends early."""
    validates: bool = True
    num_validated: int = 64
    evaluation: str = "padded"
    stop: str = "together"
    val_check_interval: float = 1.0
    shuffle: bool = True
    tail: str | None = None
    batch: str = "per_rank"
    global_batch: int | None = None
    virtual_ranks: int | None = None
    augments: bool = False
    """Samples are read with random noise."""
    clip: float | None = None
    learning_rate: str | None = None
    verify_every: int | None = None
    optimizer: str = "adam"
    grow_data_on: str = ""
    """The node whose data set is one sample longer."""
    slow_on: str = ""
    """The node whose forward pass takes `SLOW` seconds longer; all look for stragglers all the time."""
    precision: str = "32-true"
    batch_norm: bool = True
    dropout: float = 0.1
    schedule: str = "step"
    callbacks: tuple[str, ...] = ()
    recipe: str = ""
    """What the script does as some users' scripts do: a name in `recipes.RECIPES`."""
    script: str = ""
    """A group of Lightning's callbacks: a name in `matrix.scripts.SCRIPTS`."""
    checkpoint_every: int = 0
    """Optimizer steps; 0 for none."""
    snapshot_every: int | None = None
    """Optimizer steps between two snapshots, which lie in the folder `memory`."""
    resume: str = ""
    """A checkpoint."""
    after: tuple[str, ...] = ()
    """What the script does after `fit`: `test`, `validate` and `predict`, by the trainer; their results are `own`."""
    save_dies_at: tuple[str, int] | None = None
    """`best_checkpoints` only: the writer kills itself before so many file-system operations of that name."""
    save_waits: str = ""
    """And: the first save waits in mid-write until the file of that name is there."""
    seeded: bool = True
    """All nodes begin with the same weights."""
    hidden: int = 32
    tensorboard: bool = False
    progress_bar: str = ""
    """`tqdm` or `rich`."""
    until_stopped: bool = False
    """Train until the file `stop` lies in the folder; looked at after each epoch."""


class Samples(Dataset[Any]):
    """Sample i is a function of i, and of random numbers if it is augmented."""

    def __init__(self, num_samples: int, *, augments: bool = False) -> None:
        self.augments = augments
        generator = torch.Generator().manual_seed(0)
        # (num_samples, FEATURES)
        self.inputs = torch.randn(num_samples, FEATURES, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(FEATURES) + random.random() if self.augments else 0
        return self.inputs[index] + noise, self.inputs[index].sum().view(1)


class Model(L.LightningModule):
    is_slow = False

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.config = training
        if training.seeded:
            torch.manual_seed(1)
        else:
            torch.seed()
        norm = nn.BatchNorm1d(training.hidden) if training.batch_norm else nn.Identity()
        self.network = nn.Sequential(
            nn.Linear(FEATURES, training.hidden),
            nn.ReLU(),
            norm,
            nn.Dropout(training.dropout),
            nn.Linear(training.hidden, 1),
        )

    def training_step(self, batch, batch_idx):
        if self.config.data == "several":
            inputs, targets = map(torch.cat, zip(*[part for part in batch if part is not None], strict=True))
        else:
            inputs, targets = batch
        until = time.thread_time() + SLOW * self.is_slow
        while time.thread_time() < until:
            pass
        loss = nn.functional.mse_loss(self.network(inputs), targets)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("val_loss", nn.functional.mse_loss(self.network(inputs), targets), sync_dist=True)

    def test_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("test_loss", nn.functional.mse_loss(self.network(inputs), targets), sync_dist=True, on_step=True)

    def configure_optimizers(self):
        if self.config.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        else:
            scale = self.trainer.world_size if self.config.schedule == "lambda" else 1
            optimizer = torch.optim.Adam(self.parameters(), lr=1e-3 * scale)
        match self.config.schedule:
            case "step":
                scheduler = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 5), "interval": "step"}
            case "onecycle":
                steps = int(self.trainer.estimated_stepping_batches)
                one_cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
                scheduler = {"scheduler": one_cycle, "interval": "step"}
            case "lambda":  # what no state of the scheduler contains
                num_steps = self.trainer.estimated_stepping_batches
                decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / num_steps))
                scheduler = {"scheduler": decay, "interval": "step"}
            case "epoch":
                scheduler = {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), "interval": "epoch"}
            case "plateau":
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
                scheduler = {"scheduler": plateau, "monitor": "val_loss", "interval": "epoch"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class StopWhenTold(Callback):
    """Ends training after the epoch in which the file appears: all ranks together, as rank 0 saw it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.strategy.broadcast(self._path.exists())


class StopsAlone(Callback):
    """Rank 1 sets `should_stop` in a hook after so many steps, and the others do not."""

    def __init__(self, hook: str, step: int) -> None:
        self._step = step
        setattr(self, hook, self._stop)

    def _stop(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step >= self._step:
            trainer.should_stop = True


def train(training: Training, folder: Path, name: str) -> None:
    """Train and write down what came out, for comparison."""
    warnings.filterwarnings("ignore")
    injector = FaultInjector(training.faults)
    (folder / "memory").mkdir(exist_ok=True)
    callbacks = [
        ElasticCallback(
            batch=training.batch,
            global_batch=training.global_batch,
            tail=training.tail,
            virtual_ranks=training.virtual_ranks,
            learning_rate=training.learning_rate,
            verify_every_n_steps=training.verify_every,
            evaluation=training.evaluation,
            snapshot_every_n_steps=training.snapshot_every,
            snapshot_dir=str(folder / "memory"),
            stop=training.stop,
            ledger=True,
            run_dir=str(folder),
        ),
        injector,
        *_callbacks(training, folder),
    ]
    model_class: type[Model] = Model
    if training.recipe:
        from support.elastic import recipes  # which derives its models from this file's

        model_class = recipes.MODELS.get(training.recipe, Model)
        callbacks += recipes.callbacks(training.recipe)
    strategy: Any = "auto"
    if training.script:
        from support.elastic.matrix import scripts

        model_class, strategy = scripts.SCRIPTS[training.script].model, scripts.SCRIPTS[training.script].strategy()
        callbacks += scripts.callbacks(training.script, folder)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1
        if (training.until_stopped and training.schedule != "lambda") or training.max_steps > 0
        else training.max_epochs,
        max_steps=training.max_steps,
        strategy=strategy,
        callbacks=callbacks,
        logger=[CSVLogger(str(folder), name="csv"), injector.logger(), *_tensorboard(training, folder)],
        default_root_dir=str(folder),
        accumulate_grad_batches=training.accumulate,
        gradient_clip_val=training.clip,
        precision=training.precision,
        val_check_interval=training.val_check_interval,
        num_sanity_val_steps=1,
        log_every_n_steps=1,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks) or bool(training.checkpoint_every),
        enable_progress_bar=bool(training.progress_bar or training.script),
        enable_model_summary=bool(training.script),
    )
    model = model_class(training)
    if training.slow_on:
        model.is_slow = name.startswith(training.slow_on)
        straggler_probe.LOOK_SECONDS, stragglers.MIN_SECONDS = 0.2, 0.0
    num_samples = training.num_samples + name.startswith(training.grow_data_on or "\0")
    dataset = Samples(num_samples, augments=training.augments)
    loader = DataLoader(
        _of_kind(training.data, dataset, injector),
        batch_size=training.batch_size,
        shuffle=training.shuffle if "streams" not in training.data else None,
        num_workers=training.num_data_workers,
        persistent_workers=training.persistent_workers,
    )
    loaders: Any = loader
    if training.data == "several":
        other = DataLoader(Samples(training.num_samples // 2), batch_size=training.batch_size, shuffle=True)
        loaders = CombinedLoader([loader, other], "max_size")
    validated = Samples(training.num_validated)
    validation = DataLoader(validated, batch_size=8) if training.validates else None
    trainer.fit(model, loaders, validation, ckpt_path=training.resume or None)
    result = describe(trainer, model)
    if training.evaluation == "exact":
        (result["own"]["tested"],) = trainer.test(model, validation, verbose=False)
    for what in training.after:
        found = getattr(trainer, what)(model, DataLoader(validated, batch_size=8))
        result["own"][what] = sum(map(len, found)) if what == "predict" else found[0]
    result["own"]["rank"] = (trainer.global_rank, trainer.world_size)
    result["own"]["loaded"] = getattr(loader.dataset, "loaded", [])
    model.eval()
    with torch.no_grad():
        inputs, targets = torch.utils.data.default_collate([validated[i] for i in range(len(validated))])
        result["own"]["loss_of_all_validated"] = float(nn.functional.mse_loss(model.network(inputs), targets))
    (folder / f"{name}.{os.getpid()}.result").write_text(json.dumps(result))


def _tensorboard(training: Training, folder: Path) -> Iterator[TensorBoardLogger]:
    if training.tensorboard:
        yield TensorBoardLogger(str(folder), name="tensorboard")


def _of_kind(kind: str, dataset: Samples, injector: FaultInjector) -> Any:
    match kind:
        case "shards":
            sizes = [1 + 5 * (i % 4) for i in range(len(dataset) // 10)]
            return InShards(dataset, [*sizes, len(dataset) - sum(sizes)])
        case "streams":
            return InStreams(dataset, num_shards=5, share_every=3)
        case "forgetful_streams":
            return InStreams(dataset, num_shards=2, share_every=0)
    return injector.watch(dataset)


def _callbacks(training: Training, folder: Path) -> Iterator[Callback]:
    if training.checkpoint_every and "best_checkpoints" not in "".join(training.callbacks):
        yield ModelCheckpoint(
            dirpath=str(folder / "checkpoints"),
            filename="{step}",
            every_n_train_steps=training.checkpoint_every,
            save_top_k=-1,
        )
    if training.until_stopped:
        yield StopWhenTold(folder / "stop")
    for name in training.callbacks:
        match name:
            case "early_stopping":
                yield EarlyStopping("val_loss", patience=50)
            case "early_stopping_now":
                yield EarlyStopping("val_loss", patience=1, min_delta=1e9)
            case "lr_monitor":
                yield LearningRateMonitor("step")
            case "ema":
                yield from (average(avg_fn=get_ema_avg_fn(0.9)) for average in WEIGHT_AVERAGING)
            case "best_checkpoints" | "best_checkpoints_async":
                yield disturbed_checkpoints(
                    folder,
                    training.checkpoint_every,
                    name.endswith("async"),
                    training.save_dies_at,
                    training.save_waits,
                )
            case "divergence":
                yield DivergenceStopping(check_every=2, action=lambda *_: None)
            case "best":
                yield ModelCheckpoint(dirpath=str(folder / "best"), monitor="val_loss", save_top_k=2)
            case _ if name.startswith("stops_alone:"):
                _, hook, step = name.split(":")
                yield StopsAlone(hook, int(step))
            case _:
                raise ValueError(name)
    if training.progress_bar:  # the last: at an epoch's end, on rank 0 only, it computes synchronised metrics
        yield TQDMProgressBar() if training.progress_bar == "tqdm" else RichProgressBar()


def describe(trainer: L.Trainer, model: L.LightningModule) -> dict[str, Any]:
    """What all survivors must have in common, under `same`, and what a leak would show in, under `own`."""
    optimizer = [
        (index, key, value)
        for index, state in enumerate(trainer.optimizers[0].state.values())
        for key, value in sorted(state.items())
    ]
    same = {
        "global_step": trainer.global_step,
        "epoch": trainer.current_epoch,
        "parameters": _hash(list(model.named_parameters())),
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "num_groups": len(trainer.optimizers[0].param_groups),
        "optimizer": _hash(optimizer),
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
        "scheduler": repr(sorted(trainer.lr_scheduler_configs[0].scheduler.state_dict().items(), key=str)),
    }
    for callback in trainer.callbacks:
        if isinstance(callback, WEIGHT_AVERAGING):
            assert callback._average_model is not None
            same["ema"] = _hash(list(callback._average_model.named_parameters()))
            same["ema_step"] = callback._latest_update_step
        if isinstance(callback, DivergenceStopping):
            same["divergence"] = repr(callback.state_dict())
        if isinstance(callback, EarlyStopping):
            same["early_stopping"] = repr(callback.state_dict())
    return {
        "same": same,
        "own": {
            "num_files": len(os.listdir("/proc/self/fd")),
            "num_threads": threading.active_count(),
            "buffers": _hash(list(model.named_buffers())),
            "training": model.training,
            "weights": [value for parameter in model.parameters() for value in parameter.flatten().tolist()],
            "metrics": {key: float(value) for key, value in trainer.callback_metrics.items()},
        },
    }


def _hash(items: list[Any]) -> str:
    digest = hashlib.sha256()
    for *key, value in items:
        digest.update(repr(key).encode())
        digest.update(value.detach().numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return digest.hexdigest()[:16]
