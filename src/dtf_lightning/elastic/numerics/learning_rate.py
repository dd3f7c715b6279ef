"""Scales the learning rate with the world size: rules, the ramp between two factors, and what a step applies.

Rules that this file guards:

* a scheduler never sees a scaled value: the factor is applied for the duration of one optimizer step, and every value
  is put back as the very object that it was, also when the step raises;
* at factor 1.0 nothing is touched, so that a world that comes back to its reference size trains with the scheduler's
  own values to the last bit.

Sources, with k the world size over the reference world size:

* linear, k: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1 (https://arxiv.org/abs/1706.02677);
* sqrt, square root of k: Krizhevsky 2014, "One weird trick", section 5 (https://arxiv.org/abs/1404.5997); for adaptive
  optimizers;
* adam_sde: Malladi et al. 2022, "On the SDEs and Scaling Rules for Adaptive Gradient Algorithms", definition 5.2
  (https://arxiv.org/abs/2205.10287): lr times the root of k, 1 - beta times k, eps over the root of k;
* adascale: Johnson et al. 2020 (https://arxiv.org/abs/2007.05105), see `elastic/numerics/adascale.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from dtf_lightning.errors import SettingsError

log = logging.getLogger("dtf_lightning")

Rule = Callable[[int, int], float]
"""Maps (world size, reference world size) to the learning rate's factor, which is finite and above 0."""

RampShape = Literal["linear", "exponential"]
RAMP_SHAPES: tuple[RampShape, ...] = ("linear", "exponential")


def linear(world_size: int, reference: int) -> float:
    """Return the world size over the reference: a step has that many times the samples (Goyal et al. 2017)."""
    return world_size / reference


def sqrt(world_size: int, reference: int) -> float:
    """Return the square root of that ratio, which keeps the variance of a step (Krizhevsky 2014)."""
    return math.sqrt(world_size / reference)


def none(world_size: int, reference: int) -> float:  # noqa: ARG001  a rule's signature
    """Return 1.0: the scheduler's own value is used in every world."""
    return 1.0


RULES: dict[str, Rule] = {"linear": linear, "sqrt": sqrt, "adam_sde": sqrt, "adascale": none, "none": none}
"""The rules by name. `adam_sde` also scales betas and eps, `adascale` multiplies by a gain that it measures."""


def resolve_rule(rule: str | Rule) -> Rule:
    """Return the function of a rule's name, or the callable itself. Raises `SettingsError` for anything else."""
    if callable(rule):
        return rule
    if rule in RULES:
        return RULES[rule]
    raise SettingsError(
        f"learning rate rule {rule!r} is unknown; choose one of {', '.join(map(repr, RULES))}, or pass a function of "
        "(world_size, reference_world_size) that returns the factor"
    )


def checked_factor(rule: Rule, world_size: int, reference: int) -> float:
    """Return the rule's factor. Raises `SettingsError` for a factor that no learning rate can be multiplied by."""
    factor: Any = rule(world_size, reference)
    if type(factor) is bool or not isinstance(factor, int | float) or not math.isfinite(factor) or factor <= 0:
        name = getattr(rule, "__name__", repr(rule))
        raise SettingsError(
            f"learning rate rule {name} returned {factor!r} for world size {world_size} and reference {reference}; it "
            "must return a finite number above 0"
        )
    return float(factor)


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """The way from one factor to the next, step by step: the first step has the old factor, the last the new one."""

    start: float
    target: float
    steps: int = 0
    """The number of optimizer steps after which the target is reached; 0: at once."""
    done: int = 0
    """The number of optimizer steps since the ramp began."""
    shape: RampShape = "linear"

    @property
    def value(self) -> float:
        """The factor of the next step."""
        if self.done >= self.steps:
            return self.target
        share = self.done / self.steps
        if self.shape == "linear":
            value = self.start + (self.target - self.start) * share
        else:
            value = float(self.start * (self.target / self.start) ** share)
        return min(max(value, min(self.start, self.target)), max(self.start, self.target))  # rounding stays monotonic

    def stepped(self) -> Ramp:
        """Return the ramp as it is after one more committed optimizer step."""
        return replace(self, done=self.done + 1) if self.done < self.steps else self

    def toward(self, target: float) -> Ramp:
        """Return a ramp to another target, which begins at this ramp's present value."""
        if target == self.target:
            return self
        return replace(self, start=self.value, target=target, done=0)


@contextmanager
def scaled(groups: Sequence[dict[str, Any]], factor: float, *, adam_sde: bool = False) -> Iterator[None]:
    """Multiply the learning rates of an optimizer's parameter groups by `factor` inside the context.

    A value that is changed inside (by a hook that sets the learning rate) is kept. With `adam_sde`, betas and eps are
    scaled too: there the factor is the root of k, so that its square is k.
    """
    if factor == 1.0:
        yield
        return
    before: list[tuple[dict[str, Any], str, Any, Any]] = []
    try:
        for group in groups:
            changes = {"lr": group["lr"] * factor}
            if adam_sde:
                changes["betas"] = tuple(_scaled_beta(beta, factor * factor) for beta in group["betas"])
                changes["eps"] = group["eps"] / factor
            for name, value in changes.items():
                old = now = group[name]
                if hasattr(old, "copy_"):  # a tensor's identity matters to captured and compiled optimizers
                    old = old.clone()
                    now.copy_(value)
                else:
                    now = group[name] = value
                before.append((group, name, old, now))
        yield
    finally:
        for group, name, old, value in before:
            if group[name] is value:
                group[name] = value.copy_(old) if hasattr(value, "copy_") else old


def _scaled_beta(beta: Any, k: float) -> Any:
    new = 1 - k * (1 - beta)
    if new >= 0:
        return new
    log.warning(
        "learning rate rule adam_sde: beta %s cannot follow a batch %.3g times as large (it would be %.3g); it is 0 "
        "meanwhile. Use fewer workers, a larger reference world or the rule 'sqrt'.", beta, k, new,
    )  # fmt: skip
    return 0.0
