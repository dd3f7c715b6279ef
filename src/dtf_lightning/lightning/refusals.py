"""What an elastic run could only do wrongly, refused at the start with a message that says what to do instead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl


def refuse_module(pl_module: pl.LightningModule) -> None:
    """Raises `SettingsError` for a module whose steps cannot be told apart."""
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


def refuse_optimizers(trainer: pl.Trainer) -> None:
    """Raises `SettingsError` for an optimizer whose step cannot be rolled back."""
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise SettingsError(
                f"the optimizer {type(optimizer).__name__} changes the weights several times within one step, so that "
                "a step in which a worker dies cannot be rolled back. Use an optimizer that evaluates the loss once "
                "per step (SGD, Adam, ...), or train without ElasticCallback."
            )
