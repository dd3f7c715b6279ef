"""`Undo` restores logged values, metrics, callbacks' state and random numbers before a step or a hook runs again.

Rules that this file guards:

* a step that is rolled back leaves no trace in epoch means and torchmetrics (buffers and random numbers: `StepSnapshot`);
* hooks that run again (of a validation, of an epoch's end) find the callbacks' former state, or `EarlyStopping` would
  count the same epoch twice;
* a validation that is interrupted while a callback (`WeightAveraging`) has swapped other weights in leaves the right
  ones;
* no survivor keeps a synchronized metric's cached value while another has to synchronize again: their collectives would
  not match;
* going back into the loops changes no random state, although making an iterator over a DataLoader draws a number.

Private API touched here: `_ResultMetric`'s state, torchmetrics' `_defaults`, `_update_count`, `_computed` and
`_forward_cache`, `_call_callbacks_state_dict`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import Metric

from dtf_lightning.elastic.lightning.host.logs import (
    count_as_nothing,
    forget_computed,
    metric_state,
    result_state,
    training_results,
)
from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING, is_lightnings, is_overridden
from dtf_lightning.elastic.lightning.host.trainer import callback_states
from dtf_lightning.elastic.numerics.step_snapshot import StepSnapshot

if TYPE_CHECKING:
    import lightning.pytorch as pl


class Undo:
    """Keep state at step boundaries and before hooks, and restore it if the step or the hooks run again."""

    def __init__(self) -> None:
        self.snapshot = StepSnapshot()
        self._module: torch.nn.Module | None = None
        self._metrics: list[Metric] = []
        self._metric_states: list[dict[str, Any]] = []
        self._results: dict[str, dict[str, Any]] = {}
        self._hooks: tuple[dict[str, Any], torch.Tensor] | None = None
        """Callbacks' states and random state before the current hooks; `None` while no hooks run."""
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Tensors that the current hooks may swap, each with a copy of its former values."""
        self._random: torch.Tensor | None = None

    def step_begins(self, trainer: pl.Trainer) -> None:
        """Keep what a step may change besides weights and optimizers."""
        module = trainer.lightning_module
        if self._module is not module:
            self._module = module
            self._metrics = [metric for metric in module.modules() if isinstance(metric, Metric)]
        self.snapshot.take(module)
        self._metric_states = [metric_state(metric) for metric in self._metrics]
        self._results = {key: result_state(result) for key, result in training_results(trainer).items()}

    def roll_step_back(self, trainer: pl.Trainer) -> None:
        """Restore the state from before the last step, which runs again."""
        self.snapshot.restore(trainer.lightning_module)
        for metric, state in zip(self._metrics, self._metric_states, strict=True):
            vars(metric).update(state)
        results = training_results(trainer)
        for key in set(results) - set(self._results):
            del results[key]
        for key, state in self._results.items():
            vars(results[key]).update(state)

    def forget_step(self, trainer: pl.Trainer) -> None:
        """Undo the last step, which does not count.

        Values that it was the first to log in this epoch stay, with weight 0: the other workers have logged them, too,
        and all sum them up together at the end of the epoch.
        """
        results = training_results(trainer)
        first_logged = {
            key: result
            for key, result in results.items()
            if not result.has_reset and self._results.get(key, {}).get("has_reset", True)
        }
        self.roll_step_back(trainer)
        for key, result in first_logged.items():
            count_as_nothing(result)
            results[key] = result

    @torch.no_grad()
    def validation_begins(self, trainer: pl.Trainer) -> None:
        """Do what `hooks_begin` does, and copy the weights if the module or a callback could swap them."""
        self.hooks_begin(trainer)
        swappers = _possible_swappers(trainer)
        if swappers:
            modules = [trainer.lightning_module, *(value for owner in swappers for value in _modules_of(owner))]
            self._weights = [
                (tensor, tensor.detach().clone())
                for module in modules
                for tensor in module.state_dict().values()
                if isinstance(tensor, torch.Tensor)
            ]

    def hooks_begin(self, trainer: pl.Trainer) -> None:
        """Keep callbacks' and random state before a validation or an epoch's end, whose hooks may all run again."""
        self._hooks = copy.deepcopy(callback_states(trainer)), torch.get_rng_state()

    def hooks_done(self) -> None:
        self._hooks = None
        self._weights = []

    @torch.no_grad()
    def roll_hooks_back(self, trainer: Any) -> None:
        """Restore the state from before hooks that did not complete, if any: they run again."""
        forget_computed(trainer)
        if self._hooks is None:
            return
        (states, random_state), self._hooks = self._hooks, None
        for callback in trainer.callbacks:
            if callback.state_key in states:
                callback.load_state_dict(states[callback.state_key])
        for tensor, value in self._weights:
            tensor.copy_(value)
        self._weights = []
        torch.set_rng_state(random_state)

    def keep_random_state(self) -> None:
        """Keep the random state until `restore_random_state`; of several calls the first counts."""
        if self._random is None:
            self._random = torch.get_rng_state()

    def restore_random_state(self) -> None:
        if self._random is not None:
            torch.set_rng_state(self._random)
            self._random = None


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Restore the random state at the end of the context: numbers drawn inside do not affect training."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _possible_swappers(trainer: Any) -> list[Any]:
    """Return the module and callbacks that may swap weights as a validation begins, because they override its hooks.

    Of Lightning's own callbacks only `WeightAveraging` changes weights.
    """
    return [
        owner
        for owner in (trainer.lightning_module, *trainer.callbacks)
        if (isinstance(owner, WEIGHT_AVERAGING) or not is_lightnings(owner))
        and any(is_overridden(hook, owner) for hook in ("on_validation_start", "on_validation_epoch_start"))
    ]


def _modules_of(owner: Any) -> list[torch.nn.Module]:
    if isinstance(owner, torch.nn.Module):
        return []
    return [value for value in vars(owner).values() if isinstance(value, torch.nn.Module)]
