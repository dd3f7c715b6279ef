"""These checks refuse, at the start, scripts that elastic training would get wrong, and say what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dtf_lightning.elastic.lightning.host.loops import running_hook
from dtf_lightning.elastic.lightning.host.names import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    SpikeDetection,
    is_param_in_hook_signature,
)
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from dtf_lightning.elastic.data.step_plans import BatchSettings


def refuse_module(pl_module: pl.LightningModule) -> None:
    """Raise `SettingsError` for a module whose optimizer steps or batches the loops do not control."""
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise SettingsError(
            f"{name} uses manual optimization; an elastic run must know where an optimizer step begins and ends to roll "
            "it back when a worker dies. Set automatic_optimization=True, or train without ElasticCallback."
        )
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise SettingsError(
            f"{name}.training_step takes `dataloader_iter` and fetches its batches itself, so that an elastic run "
            "cannot know which samples a step has consumed. Take `batch` instead."
        )


def refuse_finders(trainer: pl.Trainer) -> None:
    """Raise `SettingsError` for callbacks that train trial steps inside `fit`; `Tuner` works by such callbacks, too."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        for kind, call in ((LearningRateFinder, "lr_find"), (BatchSizeFinder, "scale_batch_size")):
            if isinstance(callback, kind):
                raise SettingsError(
                    f"{type(callback).__name__} looks for a setting by training a few steps of its own on each worker; "
                    "workers of an elastic run join and leave at any time, and each would find another value. Look for "
                    "it once without torchrun, where ElasticCallback does nothing: "
                    f"`Tuner(trainer).{call}(model)`. Write the value that it finds into the script. Remove it from what "
                    "torchrun starts."
                )


def refuse_callbacks(trainer: pl.Trainer) -> None:
    """Raise `SettingsError` for callbacks whose state no other worker can take over."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, SpikeDetection):
            raise SettingsError(
                f"{type(callback).__name__} keeps its running mean out of its state, and its `load_state_dict` raises an "
                "AttributeError, so that a joiner cannot take it over, and workers that survive a death cannot go back to "
                "it. Write `from dtf_lightning import DivergenceStopping` and callbacks=[..., DivergenceStopping()] in its place."
            )


def refuse_nested_loop(trainer: pl.Trainer) -> None:
    """Raise `SettingsError` if the fit loop is about to run inside a hook: its steps would be taken for the run's."""
    hook = running_hook(trainer)
    if hook is not None:
        raise SettingsError(
            f"fit_loop.run() was called in the hook {hook}, inside of `fit`; an elastic run cannot tell the steps of such a "
            "trial from its own. Run the trial without torchrun, before training, or without ElasticCallback."
        )


def refuse_optimizers(trainer: pl.Trainer) -> None:
    """Raise `SettingsError` for an optimizer whose step cannot be rolled back."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise SettingsError(
                f"the optimizer {type(optimizer).__name__} changes the weights several times within one step, so that "
                "a step in which a worker dies cannot be rolled back. Use an optimizer that evaluates the loss once "
                "per step (SGD, Adam, ...), or train without ElasticCallback."
            )


def refuse_trainer(trainer: pl.Trainer, batches: BatchSettings) -> None:
    """Raise `SettingsError` for trainer arguments that a batch policy cannot honour."""
    if not batches.planned:
        return
    policy = f"batch={batches.batch!r}" if batches.virtual_ranks is None else f"virtual_ranks={batches.virtual_ranks}"
    what = f"ElasticCallback({policy}, tail={batches.tail or 'exact'!r}) plans an epoch's steps ahead"
    if batches.virtual_ranks is not None and trainer.accumulate_grad_batches != 1:
        raise SettingsError(
            f"{what}; got Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}). Leave it at 1 and multiply "
            "virtual_ranks by it: a step then has the same samples."
        )
    if batches.batch != "per_rank" and trainer.accumulate_grad_batches != 1:
        raise SettingsError(
            f"{what} and decides how many batches are accumulated; got "
            f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}). Leave it at 1."
        )
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise SettingsError(f"{what}; a GradientAccumulationScheduler would change them. Remove it.")
    if trainer.limit_train_batches not in (None, 1.0):
        raise SettingsError(
            f"{what}; got Trainer(limit_train_batches={trainer.limit_train_batches}), which would end an epoch in "
            "the middle of one. Use a smaller data set (torch.utils.data.Subset), or max_steps."
        )
