"""What a task asks of a worker, and whether a worker could ever give it. Pure.

A resource is named by a word: `cpu` (cores), `memory` (MiB), `gpu` (devices), or any other that a worker offers. Amounts
are numbers of these units; they are counted in thousandths, so that `0.1 + 0.2` is `0.3`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one worker must offer for a task; a task may have several of these, of which any will do."""

    amounts: Mapping[str, float] = field(default_factory=dict)
    """Resource -> how much of it the task takes while it runs."""
    labels: tuple[str, ...] = ()
    """Labels that the worker must carry."""
    exclusive: bool = False
    """Whether nothing else may run on the worker meanwhile."""


DEFAULT_NEED = Need(amounts={"cpu": 1})
"""What a task needs that names nothing."""


def quantised(amounts: Mapping[str, float]) -> dict[str, int]:
    """Return the amounts in thousandths, without those that are zero."""
    thousandths = {resource: round(amount * 1000) for resource, amount in amounts.items()}
    return {resource: amount for resource, amount in thousandths.items() if amount}


def lacking(need: Need, devices: Mapping[str, float], labels: Iterable[str]) -> list[str]:
    """Return what a worker lacks for this need even when it is idle, as short phrases; nothing if it could do it."""
    offered = quantised(devices)
    phrases = [
        f"{amount / 1000:g} x {resource} (it has {offered.get(resource, 0) / 1000:g})"
        for resource, amount in sorted(quantised(need.amounts).items())
        if offered.get(resource, 0) < amount
    ]
    carried = set(labels)
    return phrases + [f"the label {label!r}" for label in need.labels if label not in carried]
