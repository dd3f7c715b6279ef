"""`Undo` restores logged values, metrics, attributes, callbacks' state and random numbers before a step or hook runs again.

Rules that this file guards:

* a step that is rolled back leaves no trace in epoch means and torchmetrics (buffers and random numbers: `StepSnapshot`);
* hooks that run again (of a validation, of an epoch's start or end) find the former state of the module's and the callbacks'
  attributes and metrics, and of callbacks, or `EarlyStopping` would count the same epoch twice;
* an epoch's end has two halves, before and behind the module's own hook. Where all members are through the first, only the
  second runs again, else both: the first may have collectives;
* a step that is undone here, but was made by another member, keeps what it has gathered here;
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
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torchmetrics import Metric

from dtf_lightning.elastic.lightning.host.callbacks import put_back
from dtf_lightning.elastic.lightning.host.logs import (
    count_as_nothing,
    forget_computed,
    metric_state,
    result_state,
    training_results,
)
from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING, is_lightnings, is_overridden, rank_zero_warn
from dtf_lightning.elastic.lightning.host.trainer import callback_states
from dtf_lightning.elastic.lightning.rewind.attributes import Attributes
from dtf_lightning.elastic.numerics.kept_values import EACH_STEP, NOW_AND_THEN
from dtf_lightning.elastic.numerics.step_snapshot import StepSnapshot

if TYPE_CHECKING:
    import lightning.pytorch as pl

_NOT_PUT_BACK = (
    "a step, a validation or a hook was interrupted by a rescale and runs again. What it had changed in attributes of the "
    "module and of callbacks was put back, but for what is behind these, which may now have been changed twice: {names}. "
    "Numbers, lists, dictionaries, sets, tensors, arrays, metrics and objects of your own classes that hold such are put "
    "back (docs/guarantees.md, 'What runs again')."
)
_MOST_NAMED = 8


@dataclass(frozen=True)
class _Hooks:
    """Hold the state before hooks that may run again."""

    callbacks: dict[str, Any]
    """Lightning's and others' `state_dict`, by state key."""
    snapshot: StepSnapshot
    values: _Values
    attributes: Attributes
    weights: list[tuple[torch.Tensor, torch.Tensor]]
    """Tensors that the hooks may swap, each with a copy of its former values."""


class _Values:
    """Hold what the module's metrics have gathered, and what was logged in the epoch."""

    def __init__(self, trainer: pl.Trainer, metrics: list[Metric]) -> None:
        self._metrics = [(metric, metric_state(metric)) for metric in metrics]
        self.results = {key: result_state(result) for key, result in training_results(trainer).items()}

    def put_back(self, trainer: pl.Trainer) -> None:
        for metric, state in self._metrics:
            vars(metric).update(state)
        results = training_results(trainer)
        for key in set(results) - set(self.results):
            del results[key]
        for key, state in self.results.items():
            vars(results[key]).update(state)


class Undo:
    """Keep state at step boundaries and before hooks, and restore it if the step or the hooks run again."""

    def __init__(self) -> None:
        self.snapshot = StepSnapshot()
        self._module: torch.nn.Module | None = None
        self._metrics: list[Metric] = []
        self._values: _Values | None = None
        self._attributes = Attributes(EACH_STEP, hooks=False)
        self._undone: tuple[_Values, Attributes] | None = None
        """What the last step had changed before it was undone, until another one begins."""
        self._hooks: _Hooks | None = None
        """The state before the current hooks; `None` while no hooks run."""
        self._first_hooks: _Hooks | None = None
        """The state before the hooks that are done and need not run again, if they are on all members."""
        self._random: torch.Tensor | None = None
        self._lost: dict[str, None] = {}
        """Attributes that could not be put back, in the order in which they were found."""
        self._named: set[str] = set()
        """Those that the user was told of."""

    def step_begins(self, trainer: pl.Trainer) -> None:
        """Keep what a step may change besides weights and optimizers."""
        module = trainer.lightning_module
        if self._module is not module:
            self._module = module
            self._metrics = _metrics_in(module)
        self.snapshot.take(module)
        self._values = _Values(trainer, self._metrics)
        self._attributes.take(trainer)
        self._undone = None

    def undo_step(self, trainer: pl.Trainer) -> None:
        """Restore the state from before the last step, which runs again unless `redo_step` is called."""
        attributes = Attributes(NOW_AND_THEN, hooks=False)
        attributes.take(trainer)
        self._undone = _Values(trainer, self._metrics), attributes
        self.roll_step_back(trainer)

    def redo_step(self, trainer: pl.Trainer) -> None:
        """Take the undoing of the last step back: another member has made it, with this worker's part of its samples."""
        if self._undone is not None:
            values, attributes = self._undone
            values.put_back(trainer)
            attributes.put_back()
            self._undone = None

    def roll_step_back(self, trainer: pl.Trainer) -> None:
        """Restore the state from before the last step, which runs again."""
        self.snapshot.restore(trainer.lightning_module)
        if self._values is not None:
            self._values.put_back(trainer)
        self._lost.update(dict.fromkeys(self._attributes.put_back()))

    def forget_step(self, trainer: pl.Trainer) -> None:
        """Undo the last step, which does not count.

        Values that it was the first to log in this epoch stay, with weight 0: the other workers have logged them, too,
        and all sum them up together at the end of the epoch.
        """
        assert self._values is not None
        results, before = training_results(trainer), self._values.results
        first_logged = {
            key: result
            for key, result in results.items()
            if not result.has_reset and before.get(key, {}).get("has_reset", True)
        }
        self.roll_step_back(trainer)
        for key, result in first_logged.items():
            count_as_nothing(result)
            results[key] = result

    def validation_begins(self, trainer: pl.Trainer) -> None:
        """Do what `hooks_begin` does, and copy the weights if the module or a callback could swap them."""
        self._hooks = self._before_hooks(trainer, swappers=_possible_swappers(trainer))

    def hooks_begin(self, trainer: pl.Trainer) -> None:
        """Keep the state before hooks of an epoch's start or end, or a validation, which may all run again."""
        self._hooks = self._before_hooks(trainer)
        self._metrics = _metrics_in(trainer.lightning_module)
        self._attributes.refresh(trainer)

    def first_hooks_done(self, trainer: pl.Trainer) -> None:
        """Keep the state between the first and the last hooks of an epoch's end, and for now that from before both."""
        self._first_hooks, self._hooks = self._hooks, self._before_hooks(trainer)

    @torch.no_grad()
    def _before_hooks(self, trainer: pl.Trainer, swappers: Collection[Any] = ()) -> _Hooks:
        modules = (
            [trainer.lightning_module, *(one for owner in swappers for one in _modules_of(owner))] if swappers else []
        )
        weights = [
            (tensor, tensor.detach().clone())
            for module in modules
            for tensor in module.state_dict().values()
            if isinstance(tensor, torch.Tensor)
        ]
        places = {tensor.data_ptr() for tensor, _ in weights}
        attributes = Attributes(NOW_AND_THEN, hooks=True)
        attributes.refresh(
            trainer, copied=[one for module in modules for one in module.parameters() if one.data_ptr() in places]
        )
        attributes.take(trainer)
        snapshot = StepSnapshot()
        snapshot.take(trainer.lightning_module)
        return _Hooks(
            callbacks=copy.deepcopy(callback_states(trainer)),
            snapshot=snapshot,
            values=_Values(trainer, _metrics_in(trainer.lightning_module)),
            attributes=attributes,
            weights=weights,
        )

    def hooks_done(self) -> None:
        self._hooks = self._first_hooks = None

    def roll_hooks_back(self, trainer: Any) -> None:
        """Restore the state from before hooks that did not complete, if any: they run again."""
        hooks, self._hooks = self._hooks, None
        self._put_back(trainer, hooks)

    def roll_first_hooks_back(self, trainer: Any) -> None:
        """Restore the state from before the first hooks of an epoch's end, which are done here but not everywhere."""
        hooks, self._first_hooks = self._first_hooks, None
        self._put_back(trainer, hooks)

    @torch.no_grad()
    def _put_back(self, trainer: Any, hooks: _Hooks | None) -> None:
        if hooks is not None:
            hooks.values.put_back(trainer)
            self._lost.update(dict.fromkeys(hooks.attributes.put_back()))
            for callback in trainer.callbacks:  # whose `load_state_dict` knows more than its attributes tell
                if callback.state_key in hooks.callbacks:
                    put_back(callback, hooks.callbacks[callback.state_key])
            hooks.snapshot.restore(trainer.lightning_module)
            for tensor, value in hooks.weights:
                tensor.copy_(value)
        forget_computed(trainer)

    def warn(self) -> None:
        """Name, on rank 0 and once, what was not put back and may now count something twice."""
        names = [name for name in self._lost if name not in self._named]
        self._lost.clear()
        self._named.update(names)
        if names:
            more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            rank_zero_warn(_NOT_PUT_BACK.format(names=", ".join(names[:_MOST_NAMED]) + more))

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


def _metrics_in(module: torch.nn.Module) -> list[Metric]:
    return [metric for metric in module.modules() if isinstance(metric, Metric)]


def _modules_of(owner: Any) -> list[torch.nn.Module]:
    if isinstance(owner, torch.nn.Module):
        return []
    return [value for value in vars(owner).values() if isinstance(value, torch.nn.Module)]
