"""These functions turn the whole training state into one dictionary, and load it into another trainer.

Most of it is Lightning's own checkpoint (`dump_checkpoint`), which is loaded by Lightning's own restore functions, so
that all that can resume from a checkpoint can be sent to a joiner: weights, buffers, optimizers, schedulers, scaler,
loops, callbacks, the data module, and what the user's `on_save_checkpoint` adds. The rest is what a checkpoint on disk
does not need: logged metrics, `should_stop`, and the folders of loggers and checkpoint callbacks.

Private API touched here: the checkpoint connector's `_loaded_checkpoint`, the logger connector's metric dictionaries,
the loops' restart flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning.elastic.lightning.host.logs import adopt_version, shown_metrics
from dtf_lightning.elastic.lightning.host.loops import clear_restart_flags
from dtf_lightning.elastic.lightning.host.names import ModelCheckpoint
from dtf_lightning.elastic.lightning.host.trainer import dump_checkpoint, load_checkpoint
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress

if TYPE_CHECKING:
    import lightning.pytorch as pl

CHECKPOINT_KEY = "dtf_lightning"


def dump_start(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what all members of the first generation must share although each was set up alone."""
    return {
        "checkpoint_folders": {
            callback.state_key: callback.dirpath
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint)
        },
        "logger_versions": [logger.version for logger in trainer.loggers],
    }


def load_start(trainer: pl.Trainer, start: dict[str, Any]) -> None:
    """Adopt the folders and versions that `dump_start` returned on another worker."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in start["checkpoint_folders"]:
            callback.dirpath = start["checkpoint_folders"][callback.state_key]
    for logger, version in zip(trainer.loggers, start["logger_versions"], strict=False):
        adopt_version(logger, version)


def dump_state(trainer: pl.Trainer, progress: TrainingProgress) -> dict[str, Any]:
    """Return the training state; its tensors are references, not copies. It can be pickled if a checkpoint can."""
    return {
        "start": dump_start(trainer),
        "checkpoint": dump_checkpoint(trainer),
        "progress": progress.state_dict(),
        "metrics": {name: _on_cpu(metrics) for name, metrics in shown_metrics(trainer).items()},
        "should_stop": trainer.should_stop,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,  # set by GradientAccumulationScheduler for this epoch
    }


def load_state(trainer: pl.Trainer, progress: TrainingProgress, state: dict[str, Any]) -> None:
    """Adopt the training state that `dump_state` returned on another worker."""
    load_start(trainer, state["start"])
    load_checkpoint(trainer, state["checkpoint"])
    clear_restart_flags(trainer.fit_loop)
    shown = shown_metrics(trainer)
    for name, metrics in state["metrics"].items():
        shown[name].update(metrics)
    trainer.should_stop = state["should_stop"]
    trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
    progress.load_state_dict(state["progress"])


def _on_cpu(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
