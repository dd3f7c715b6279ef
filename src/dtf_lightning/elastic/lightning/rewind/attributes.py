"""`Attributes` keeps what the module and users' callbacks hold in attributes, for a step or hooks that run again.

Rules that this file guards:

* kept are the attributes of the LightningModule, of its parts and metrics unless they are of torch's own classes, and of
  callbacks but for progress bars and our own. Lightning's callbacks change nothing before an optimizer step: theirs are kept
  before hooks only, and so are the learning rates and other settings of optimizers and schedulers;
* what torch and Lightning hold in a module themselves (weights, buffers, parts, the trainer) is left as it is;
* weights of a module that a callback holds (an average) are kept before hooks. Others that have changed, and may
  not have, are told apart by their versions, and named.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torchmetrics import Metric

from dtf_lightning.elastic.lightning.host.logs import metric_names, metric_state
from dtf_lightning.elastic.lightning.host.names import LightningModule, ProgressBar, is_lightnings
from dtf_lightning.elastic.numerics.kept_values import KeptValues, Limits, Owner, Restore, own_classes, version_of

_FOREIGN = ("torch", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", "dtf_lightning", "fsspec")
"""Packages whose objects are not the user's own, and stay as they are where they are not known."""


class Attributes:
    """Keep the attributes at each `take`, and put them back.

    Args:
        limits: what is too large to be kept.
        hooks: whether this is for hooks that run again, not for a step: these may change optimizers' settings and weights.
    """

    def __init__(self, limits: Limits, *, hooks: bool) -> None:
        self._limits = limits
        self._hooks = hooks
        self._values = KeptValues(limits)
        self._owners: list[Owner] = []
        self._module: torch.nn.Module | None = None
        """The module that `_owners` belong to."""
        self._parts: set[int] = set()
        """The module's own parts, which others refer to."""
        self._aside: dict[int, tuple[list[Metric], list[torch.nn.Parameter]]] = {}
        """Metrics and weights of modules that are no parts of it."""
        self._own_weights: set[int] = set()
        """Weights that are the optimizer's business, or that somebody else puts back."""

    def refresh(self, trainer: Any, *, copied: Collection[torch.Tensor] = ()) -> None:
        """Look for parts and callbacks anew. `copied`: weights that somebody else puts back."""
        module = trainer.lightning_module
        callbacks = [one for one in trainer.callbacks if self._is_kept(one)]
        if module is not self._module:
            self._module = module
            roots = {type(owner).__module__.partition(".")[0] for owner in (module, *callbacks)} - {*_FOREIGN}
            self._values = KeptValues(self._limits, own=own_classes(roots), other=self._other)
        self._owners = [*_owners_in(module), *(Owner(type(one).__name__, vars(one)) for one in callbacks)]
        self._parts, self._aside = {id(part) for part in module.modules()}, {}
        self._own_weights = {id(tensor) for tensor in copied}
        mine = [one for one in module.parameters() if id(one) not in self._own_weights]
        self._own_weights |= {id(one) for one in mine}
        if not self._hooks:
            return
        self._owners += [
            Owner(type(module).__name__, {"weights": Parameters(mine)}),
            *(Owner(type(one).__name__, {"param_groups": one.param_groups}) for one in trainer.optimizers),
            *(Owner(type(one.scheduler).__name__, vars(one.scheduler)) for one in trainer.lr_scheduler_configs),
        ]

    def take(self, trainer: Any) -> None:
        """Keep all attributes as they are now."""
        if trainer.lightning_module is not self._module:
            self.refresh(trainer)
        self._values.take(self._owners)

    def put_back(self) -> list[str]:
        """Restore the attributes; return names of those that may hold something that could not be restored."""
        return self._values.put_back()

    def _other(self, value: Any) -> Restore | None:
        """Return how an object is put back that is no plain value."""
        if isinstance(value, Parameters):
            return value.restore
        if isinstance(value, torch.nn.Module):
            return _nothing if id(value) in self._parts else self._module_aside(value)
        return _nothing if type(value).__module__.partition(".")[0] in _FOREIGN else None

    def _module_aside(self, module: torch.nn.Module) -> Restore:
        """Return how a module is put back that is no part of the trained one: an average of it, or a teacher."""
        if id(module) not in self._aside:
            metrics = [part for part in module.modules() if isinstance(part, Metric)]
            self._aside[id(module)] = metrics, [one for one in module.parameters() if id(one) not in self._own_weights]
        metrics, weights = self._aside[id(module)]
        states = [(metric, metric_state(metric)) for metric in metrics]
        copies = self._hooks and sum(one.numel() for one in weights) <= self._limits.elements
        kept = Parameters(weights, copies=copies)

        def restore() -> None:
            for metric, state in states:
                vars(metric).update(state)
            kept.restore()

        return restore

    def _is_kept(self, callback: Any) -> bool:
        if type(callback).__module__.startswith("dtf_lightning.") or isinstance(callback, ProgressBar):
            return False
        return hasattr(callback, "__dict__") and (self._hooks or not is_lightnings(callback))


class Parameters:
    """Hold the versions of weights, and copies of them where they are not too large."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, copies: bool = False) -> None:
        self._kept = [(one, version_of(one), one.detach().clone() if copies else None) for one in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back that have changed. Raises `ValueError` where there is no copy."""
        for one, version, copy in self._kept:
            if version_of(one) != version:
                if copy is None:
                    raise ValueError("weights have changed, and there is no copy of them")
                one.copy_(copy)


def _nothing() -> None:
    """Put nothing back."""


def _owners_in(module: torch.nn.Module) -> Iterator[Owner]:
    """Yield the module and those of its parts that may hold more than torch and torchmetrics know."""
    root, skipped = type(module).__name__, _module_names()
    for path, part in module.named_modules():
        if type(part).__module__.startswith("torch."):
            continue
        name = f"{root}.{path}" if path else root
        yield Owner(name, vars(part), metric_names(part) if isinstance(part, Metric) else skipped)


@functools.cache
def _module_names() -> frozenset[str]:
    """Return names of the attributes of a module that are torch's, Lightning's, or set for the time of a step."""
    return frozenset((*vars(torch.nn.Module()), *vars(LightningModule()), "forward"))
