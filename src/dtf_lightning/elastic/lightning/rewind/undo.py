"""What is done again must find everything as it was: logged values, metrics, callbacks' state, random numbers.

Rules that this file guards:

* a step that is rolled back leaves no trace in epoch means and torchmetrics (buffers and random numbers: `StepSnapshot`);
* hooks that run again (a validation's, an epoch end's) find the callbacks' state of before, or `EarlyStopping` would
  count the same epoch twice;
* a validation that is interrupted while somebody (`WeightAveraging`) has swapped other weights in leaves the right ones;
* no survivor keeps a synchronised metric's cached value while another has to synchronise again: their collectives would
  not match;
* going back into the loops draws no random number: making an iterator over a DataLoader does.

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
    """Remembers at step boundaries and before hooks, restores when one of them is done again."""

    def __init__(self) -> None:
        self.snapshot = StepSnapshot()
        self._module: torch.nn.Module | None = None
        self._metrics: list[Metric] = []
        self._metric_states: list[dict[str, Any]] = []
        self._results: dict[str, dict[str, Any]] = {}
        self._hooks: tuple[dict[str, Any], torch.Tensor] | None = None
        """Callbacks' states and random state before the hooks that run; `None` outside."""
        self._weights: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Tensors that the hooks that run may swap, and what was in them."""
        self._random: torch.Tensor | None = None

    def step_begins(self, trainer: pl.Trainer) -> None:
        """Remember what a step may change besides weights and optimizers."""
        module = trainer.lightning_module
        if self._module is not module:
            self._module = module
            self._metrics = [metric for metric in module.modules() if isinstance(metric, Metric)]
        self.snapshot.take(module)
        self._metric_states = [metric_state(metric) for metric in self._metrics]
        self._results = {key: result_state(result) for key, result in training_results(trainer).items()}

    def roll_step_back(self, trainer: pl.Trainer) -> None:
        """The step that began last is done again."""
        self.snapshot.restore(trainer.lightning_module)
        for metric, state in zip(self._metrics, self._metric_states, strict=True):
            vars(metric).update(state)
        results = training_results(trainer)
        for key in set(results) - set(self._results):
            del results[key]
        for key, state in self._results.items():
            vars(results[key]).update(state)

    def forget_step(self, trainer: pl.Trainer) -> None:
        """The step that began last does not count.

        What it was the first to log in this epoch stays, as nothing: the others have logged it too, and all sum it up
        together at the end of the epoch.
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
        """Like `hooks_begin`, and remember the weights if anybody could swap them. Costs a copy of them then."""
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
        """A validation or the end of an epoch begins, whose hooks would all run again."""
        self._hooks = copy.deepcopy(callback_states(trainer)), torch.get_rng_state()

    def hooks_done(self) -> None:
        self._hooks = None
        self._weights = []

    @torch.no_grad()
    def roll_hooks_back(self, trainer: Any) -> None:
        """The hooks that began last, if any are not done, run again."""
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
        """Remember the random state until `restore_random_state`; the first of several calls counts."""
        if self._random is None:
            self._random = torch.get_rng_state()

    def restore_random_state(self) -> None:
        if self._random is not None:
            torch.set_rng_state(self._random)
            self._random = None


@contextmanager
def unchanged_random_state() -> Iterator[None]:
    """Inside, random numbers may be drawn that training does not know of."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _possible_swappers(trainer: Any) -> list[Any]:
    """Whoever has code of their own where a validation begins; of Lightning's callbacks only one changes weights."""
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
