"""These functions turn the whole training state into named parts, and load them into another trainer.

Rules that this file guards:

* weights, buffers, `requires_grad`, optimizers, schedulers, scaler and counters come straight from the module and the
  trainer, and are loaded last, so that no hook can change what a worker receives;
* what hooks add is in parts of its own (`checkpoint` and `callbacks`): the checkpoint as the `on_save_checkpoint` hooks of module and
  callbacks have left it, which the receiver's `on_load_checkpoint` hooks see as they would see it in a file, and the
  callbacks' `state_dict`s;
* only `dump_users` runs users' code, which may raise, or give what cannot be pickled.

The rest is what a checkpoint on disk does not need: logged metrics, `should_stop`, and the folders of loggers and
checkpoint callbacks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning.elastic.lightning.host.callbacks import (
    checkpoint_marks,
    go_on_averaging,
    pruning_tickets,
    set_checkpoint_marks,
    set_pruning_tickets,
)
from dtf_lightning.elastic.lightning.host.logs import adopt_version, shown_metrics
from dtf_lightning.elastic.lightning.host.loops import clear_restart_flags
from dtf_lightning.elastic.lightning.host.names import ModelCheckpoint
from dtf_lightning.elastic.lightning.host.trainer import callback_states, dump_checkpoint, run_load_hooks
from dtf_lightning.elastic.lightning.rewind.module_state import dump_module, load_module
from dtf_lightning.elastic.lightning.rewind.optimizer_state import (
    dump_optimizers,
    dump_schedulers,
    load_optimizers,
    load_schedulers,
)
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.rewind.undo import unchanged_random_state

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


def dump_users(trainer: pl.Trainer, *, hooks: bool = True) -> dict[str, Any]:
    """Return what users' code makes and changes, as parts for `load_state`. Tensors are references, not copies.

    Raises whatever hooks and users' own optimizers and schedulers raise. Hooks may use collectives, if all members call
    this together; without `hooks` their part is left out.
    """
    state = {
        "module": dump_module(trainer.lightning_module),
        "optimizers": dump_optimizers(trainer),
        "schedulers": dump_schedulers(trainer),
        "scaler": trainer.precision_plugin.state_dict(),
    }
    if not hooks:
        return state
    with unchanged_random_state():
        return state | {"callbacks": callback_states(trainer), "checkpoint": dump_checkpoint(trainer)}


def dump_position(trainer: pl.Trainer, progress: TrainingProgress) -> dict[str, Any]:
    """Return the rest of the training state, as parts for `load_state`: no code of users runs."""
    return {
        "start": dump_start(trainer),
        "saved": checkpoint_marks(trainer),
        "tickets": pruning_tickets(trainer),
        "loop": trainer.fit_loop.state_dict(),
        "progress": progress.state_dict(),
        "metrics": {name: _on_cpu(metrics) for name, metrics in shown_metrics(trainer).items()},
        "should_stop": trainer.should_stop,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,  # set by GradientAccumulationScheduler for this epoch
    }


def dump_state(trainer: pl.Trainer, progress: TrainingProgress) -> dict[str, Any]:
    """Return the whole training state; its tensors are references, not copies. Raises like `dump_users`."""
    return dump_users(trainer) | dump_position(trainer, progress)


def load_state(trainer: pl.Trainer, progress: TrainingProgress, state: dict[str, Any]) -> None:
    """Adopt the training state that another worker has dumped.

    Hooks do not run if their parts are not there. Raises `ProtocolError` where this worker's model or optimizers are not
    the run's, and what users' hooks raise.
    """
    load_start(trainer, state["start"])
    if "checkpoint" in state:
        run_load_hooks(trainer, state["checkpoint"], state["callbacks"])
    load_module(trainer.lightning_module, state["module"])
    if state["scaler"]:
        trainer.precision_plugin.load_state_dict(state["scaler"])
    trainer.fit_loop.load_state_dict(state["loop"])
    load_optimizers(trainer, state["optimizers"])
    load_schedulers(trainer, state["schedulers"])
    go_on_averaging(trainer)
    set_checkpoint_marks(trainer, state["saved"])
    set_pruning_tickets(trainer, state["tickets"])
    clear_restart_flags(trainer.fit_loop)
    shown = shown_metrics(trainer)
    for name, metrics in state["metrics"].items():
        shown[name].update(metrics)
    trainer.should_stop = state["should_stop"]
    trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
    progress.load_state_dict(state["progress"])


def _on_cpu(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value.detach().cpu() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}
