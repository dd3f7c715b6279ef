"""`Evaluations` counts how often a batch's loss is evaluated, and refuses an optimizer that does it more than once.

Such an optimizer (sharpness-aware minimization and its kin) changes the weights, evaluates again at the other place, and
goes back from there. Where a worker dies between the two, the survivors roll back to weights that belong to neither, and
nobody would notice. What an optimizer does is only seen when it does it, so that the first step is watched with a copy of
the weights, which the refusal puts back: whatever is saved on the way out holds the weights of before.
"""

from __future__ import annotations

import torch

from dtf_lightning.errors import SettingsError


class Evaluations:
    """Count the evaluations of one batch after the other."""

    def __init__(self) -> None:
        self._num = 0
        self._num_batches = 0
        self._former: list[torch.Tensor] = []
        """Parameters of before the first batch, in host memory; empty when it is done."""

    def batch_begins(self, module: torch.nn.Module) -> None:
        """Count anew: a batch is drawn, or drawn again."""
        first = self._num_batches == 0
        self._former = [p.detach().to("cpu", copy=True) for p in module.parameters()] if first else []
        self._num = 0
        self._num_batches += 1

    def begins(self, module: torch.nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
        """Count an evaluation that is about to run. Raises `SettingsError` for the second one of a batch."""
        self._num += 1
        if self._num == 1:
            return
        with torch.no_grad():
            for parameter, former in zip(module.parameters(), self._former, strict=False):
                parameter.copy_(former)
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise SettingsError(
            f"the optimizer {names}, or {type(module).__name__}.optimizer_step, evaluated the loss of one batch a second "
            "time; the weights may have changed between the two, so that a step in which a worker dies cannot be rolled "
            "back. Use an optimizer that evaluates the loss once per step (SGD, Adam, ...), or train without ElasticCallback."
        )
