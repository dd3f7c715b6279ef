"""The whole training state as one dictionary, from a running trainer into another.

The bulk is Lightning's own checkpoint (`dump_checkpoint`) and goes back through Lightning's own restore functions, so
that whatever can resume from a checkpoint can be handed to a joiner: weights, buffers, optimizers, schedulers, scaler,
loops, callbacks, the data module, and whatever the user's `on_save_checkpoint` adds. Beside it goes what a checkpoint
on disk does not need: logged metrics, `should_stop`, where loggers and checkpoint callbacks write.

Private API touched here: the checkpoint connector's `_loaded_checkpoint`, the logger connector's metric dictionaries,
the loops' restart flags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from dtf_lightning.elastic.lightning.reporting.run_log import adopt_version
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.rewind.restart_flags import clear_restart_flags

if TYPE_CHECKING:
    import lightning.pytorch as pl

CHECKPOINT_KEY = "dtf_lightning"


def dump_start(trainer: pl.Trainer) -> dict[str, Any]:
    """What all members of the first generation must share although each has set itself up alone."""
    return {
        "checkpoint_folders": {
            callback.state_key: callback.dirpath
            for callback in trainer.checkpoint_callbacks
            if isinstance(callback, ModelCheckpoint)
        },
        "logger_versions": [logger.version for logger in trainer.loggers],
    }


def load_start(trainer: pl.Trainer, start: dict[str, Any]) -> None:
    """Become like the sender of `dump_start`."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.state_key in start["checkpoint_folders"]:
            callback.dirpath = start["checkpoint_folders"][callback.state_key]
    for logger, version in zip(trainer.loggers, start["logger_versions"], strict=False):
        adopt_version(logger, version)


def dump_state(trainer: pl.Trainer, progress: TrainingProgress) -> dict[str, Any]:
    """A dictionary whose tensors are references, not copies. All of it can be pickled if a checkpoint can."""
    connector = trainer._logger_connector
    return {
        "start": dump_start(trainer),
        "checkpoint": trainer._checkpoint_connector.dump_checkpoint(weights_only=False),
        "progress": progress.state_dict(),
        "metrics": {
            name: _on_cpu(getattr(connector, name))
            for name in ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")
        },
        "should_stop": trainer.should_stop,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,  # GradientAccumulationScheduler's, for this epoch
    }


def load_state(trainer: pl.Trainer, progress: TrainingProgress, state: dict[str, Any]) -> None:
    """Become what the sender of `dump_state` is."""
    load_start(trainer, state["start"])
    load_checkpoint(trainer, state["checkpoint"])
    clear_restart_flags(trainer.fit_loop)
    for name, metrics in state["metrics"].items():
        getattr(trainer._logger_connector, name).update(metrics)
    trainer.should_stop = state["should_stop"]
    trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
    progress.load_state_dict(state["progress"])


def load_checkpoint(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
    """Resume from Lightning's checkpoint, as `fit(ckpt_path=...)` does."""
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = checkpoint
    connector.restore_datamodule()
    connector.restore_model()
    connector.restore_callbacks()
    connector.restore_training_state()
    connector._loaded_checkpoint = {}


def _on_cpu(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
