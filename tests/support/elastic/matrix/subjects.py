"""One of each callback that Lightning ships, as users make them, and what of it must be the same after a rescale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import callbacks
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.swa_utils import get_ema_avg_fn

from support.elastic.run_of_one import Net

Make = Callable[[Path], list[Callback]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What goes through the matrix."""

    make: Make
    """Its callbacks; files go into the folder."""
    model: Callable[..., Net] = Net
    trainer: Mapping[str, Any] = field(default_factory=dict)
    epoch_ends: tuple[int, ...] = (6, 12, 18, 24)
    """Optimizer steps at the ends of epochs in a world of one."""
    own: frozenset[str] = frozenset()
    """Attributes of the callback that are each process's own: times, or what belongs to a terminal."""
    logs_own: tuple[str, ...] = ()
    """Beginnings of the names of logged values that are times or measurements."""


class WithBackbone(Net):
    """Its first layer is a backbone, frozen at first."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**overrides)
        self.backbone = self.layers[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


class Freezes(callbacks.BaseFinetuning):
    """The example of `BaseFinetuning`'s documentation."""

    def __init__(self) -> None:
        super().__init__()
        self._unfreeze_at_epoch = 1

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(_first_layer(pl_module))

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == self._unfreeze_at_epoch:
            self.unfreeze_and_add_param_group(_first_layer(pl_module), optimizer)


def _first_layer(pl_module: Any) -> nn.Module:
    return (pl_module.layers if hasattr(pl_module, "layers") else pl_module.network)[0]


class Unfrozen(Net):
    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


def _checkpoint(folder: Path) -> list[Callback]:
    return [
        callbacks.ModelCheckpoint(folder, "{epoch}", save_top_k=2, monitor="val_loss", save_last=True),
        callbacks.ModelCheckpoint(folder / "steps", "{step}", every_n_train_steps=4, save_top_k=-1),
    ]


class Counting(callbacks.LambdaCallback):
    """Its functions count; what they count into is its state."""

    def __init__(self) -> None:
        self.counts = {"batches": 0, "validations": 0, "epochs": 0}
        super().__init__(
            on_train_batch_end=lambda *_: self._count("batches"),
            on_validation_end=lambda *_: self._count("validations"),
            on_train_epoch_end=lambda *_: self._count("epochs"),
        )

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def state_dict(self) -> dict[str, int]:
        return self.counts.copy()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.counts.update(state_dict)


def _pruning(**arguments: Any) -> Make:
    def make(_: Path) -> list[Callback]:
        return [callbacks.ModelPruning("l1_unstructured", amount=0.3, parameters_to_prune=None, **arguments)]

    return make


def simply(kind: str, *args: Any, **kwargs: Any) -> Make:
    """Make one callback of this name."""
    return lambda _: [getattr(callbacks, kind)(*args, **kwargs)]


BAR = frozenset(
    {
        "_enabled",
        "_is_enabled",
        "train_progress_bar_id",
        "val_progress_bar_id",
        "val_sanity_progress_bar_id",
        "_current_eval_dataloader_idx",
    }
)

SUBJECTS: dict[str, Subject] = {
    "BackboneFinetuning": Subject(
        make=simply("BackboneFinetuning", unfreeze_backbone_at_epoch=1),
        model=WithBackbone,
        own=frozenset({"_restarting"}),
    ),
    "BaseFinetuning": Subject(make=lambda _: [Freezes()], model=Unfrozen, own=frozenset({"_restarting"})),
    "DeviceStatsMonitor": Subject(make=simply("DeviceStatsMonitor", cpu_stats=True), logs_own=("DeviceStatsMonitor",)),
    "EarlyStopping": Subject(make=simply("EarlyStopping", "val_loss", mode="max", min_delta=100.0, patience=5)),
    "EMAWeightAveraging": Subject(make=simply("EMAWeightAveraging", decay=0.9)),
    "GradientAccumulationScheduler": Subject(
        make=simply("GradientAccumulationScheduler", {0: 1, 1: 2}), epoch_ends=(6, 9, 12, 15)
    ),
    "LambdaCallback": Subject(make=lambda _: [Counting()]),
    "LearningRateMonitor": Subject(
        make=simply("LearningRateMonitor", log_momentum=True), own=frozenset({"lrs", "last_momentum_values"})
    ),
    "ModelCheckpoint": Subject(
        make=_checkpoint, trainer={"enable_checkpointing": True}, own=frozenset({"_last_time_checked"})
    ),
    "ModelPruning": Subject(make=_pruning(), own=frozenset({"_original_layers", "_global_kwargs"})),
    "ModelSummary": Subject(make=simply("ModelSummary"), trainer={"enable_model_summary": True}),
    "OnExceptionCheckpoint": Subject(make=lambda folder: [callbacks.OnExceptionCheckpoint(folder)]),
    "RichModelSummary": Subject(make=simply("RichModelSummary"), trainer={"enable_model_summary": True}),
    "RichProgressBar": Subject(make=simply("RichProgressBar"), trainer={"enable_progress_bar": True}, own=BAR),
    "StochasticWeightAveraging": Subject(
        make=simply("StochasticWeightAveraging", 0.01, swa_epoch_start=1),
        own=frozenset({"_scheduler_state", "_init_n_averaged", "_swa_lrs"}),
    ),
    "ThroughputMonitor": Subject(
        make=simply("ThroughputMonitor", batch_size_fn=lambda batch: len(batch[0]), window_size=3),
        own=frozenset({"_t0s", "_samples", "_batches", "_lengths", "_module_has_flops"}),
        logs_own=("train/", "validate/"),
    ),
    "Timer": Subject(
        make=simply("Timer", duration={"hours": 1}),
        own=frozenset({"_offset", "_start_time", "_end_time", "time_elapsed"}),
    ),
    "TQDMProgressBar": Subject(make=simply("TQDMProgressBar"), trainer={"enable_progress_bar": True}, own=BAR),
    "WeightAveraging": Subject(make=simply("WeightAveraging", avg_fn=get_ema_avg_fn(0.5))),
}


def plain(value: Any, depth: int = 4) -> Any:
    """What can be compared of a value; `None` for the rest."""
    if isinstance(value, torch.Tensor):
        return value.detach().tolist()
    if isinstance(value, nn.Module):
        return {name: tensor.tolist() for name, tensor in value.state_dict().items()}
    if isinstance(value, str | int | float | bool | Path | None):
        return str(value) if isinstance(value, Path) else value
    if depth and isinstance(value, Mapping):
        return {str(key): plain(part, depth - 1) for key, part in value.items()}
    if depth and isinstance(value, Iterable) and isinstance(value, list | tuple | set | frozenset):
        return [plain(part, depth - 1) for part in value]
    return None


def state_of(callback: Callback, own: frozenset[str]) -> dict[str, Any]:
    """Attributes and `state_dict` of a callback, without what is each process's own."""
    attributes = {name: plain(value) for name, value in vars(callback).items() if name not in own}
    state = {name: plain(value) for name, value in callback.state_dict().items() if name not in own}
    return {"attributes": attributes, "state_dict": state}
