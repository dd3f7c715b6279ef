"""Lowers every learning rate by a factor, in all places where optimizers and schedulers keep theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

RATES = ("lr", "initial_lr", "max_lr", "min_lr")
"""The keys of parameter groups that hold rates: the current one, what closed-form schedulers start from,
OneCycleLR's."""


def cut_learning_rates(optimizers: Iterable[torch.optim.Optimizer], schedulers: Iterable[Any], factor: float) -> None:
    """Multiply by `factor` the present learning rates, and all that the schedulers are still going to set."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for key in RATES:
                rate = group.get(key)
                if isinstance(rate, torch.Tensor):
                    rate.mul_(factor)  # a captured graph reads this very tensor
                elif isinstance(rate, (int, float)):
                    group[key] = rate * factor
    for scheduler in schedulers:
        for name in ("base_lrs", "_last_lr"):
            rates = getattr(scheduler, name, None)
            if isinstance(rates, list):
                setattr(scheduler, name, [rate * factor for rate in rates])


def hyperparameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[list[dict[str, Any]]]:
    """Return what the parameter groups hold besides parameters, to be put back by `restore_hyperparameters`."""
    return [
        [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in optimizers
    ]


def restore_hyperparameters(optimizers: Iterable[torch.optim.Optimizer], saved: Iterable[list[dict[str, Any]]]) -> None:
    """Undo what `load_state_dict` did to learning rates and the like; the moments stay loaded."""
    for optimizer, groups in zip(optimizers, saved, strict=True):
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            group.update(values)
