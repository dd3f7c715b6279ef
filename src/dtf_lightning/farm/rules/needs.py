"""What a task asks of a worker, and whether a worker could ever give it. Pure.

A resource is named by a word: `cpu` (cores), `memory` (MiB), `gpu` (devices), or any other that a worker offers. Amounts
are numbers of these units.

Rules that this file guards:
- Amounts are compared and added as whole thousandths, so that taking and giving back a third of a device a million times
  leaves what was there. What is asked for is rounded up, what is offered down: never more is given than there is.
- No amount, however strange, raises: it may stand in the record already, and every coordinator would die of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace


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


SECRET = "secret:"
"""What the label begins with by which a worker says that it has a secret; the name follows."""

SHORTEST_SECRET, LONGEST_SECRET = 4, 64 * 1024
"""Bytes of a secret's value: a shorter one stands in every output by chance and is not masked."""

CPU = "cpu"
MEMORY = "memory"

THOUSANDTHS = 1000
BEYOND = 1 << 60
"""Thousandths that no worker has."""
_NOISE = 1e-6
"""Thousandths by which a float may be off: 0.1 * 1000 could be a little more than 100."""


def asked(amount: float) -> int:
    """Return the thousandths that a need of this amount takes; 0 for what is no positive number."""
    if not amount > 0:
        return 0
    if amount >= BEYOND / THOUSANDTHS:
        return BEYOND
    return max(1, math.ceil(amount * THOUSANDTHS - _NOISE))


def offered(amount: float) -> int:
    """Return the thousandths that a worker with this amount has; 0 for what is no positive number."""
    if not amount > 0:
        return 0
    return math.floor(min(amount * THOUSANDTHS + _NOISE, BEYOND - 1))


def scarce_first(resource: str) -> tuple[int, str]:
    """Order resources: accelerators and whatever else before cpu, cpu before memory."""
    return {CPU: 1, MEMORY: 2}.get(resource, 0), resource


def in_words(thousandths: int) -> str:
    """Return `2000` as "2", `500` as "0.5"."""
    return f"{thousandths / THOUSANDTHS:g}" if thousandths % THOUSANDTHS else str(thousandths // THOUSANDTHS)


def quantised(amounts: Mapping[str, float]) -> dict[str, int]:
    """Return the amounts of a need in thousandths, without those that are not asked for."""
    return {resource: wanted for resource, amount in amounts.items() if (wanted := asked(amount))}


def needed(needs: tuple[Need, ...], secrets: Sequence[str] = ()) -> tuple[Need, ...]:
    """Return the alternatives of a task that asks for these, and for these secrets, by their names."""
    alternatives = needs or (DEFAULT_NEED,)
    if not secrets:
        return alternatives
    labels = [SECRET + name for name in secrets]
    return tuple(replace(need, labels=(*need.labels, *labels)) for need in alternatives)


def label_in_words(label: str) -> str:
    """Return what carrying a label means: "the label 'ssd'", or "the secret 'HF_TOKEN'"."""
    if label.startswith(SECRET):
        return f"the secret {label.removeprefix(SECRET)!r}"
    return f"the label {label!r}"


def lacking(need: Need, devices: Mapping[str, float], labels: Iterable[str]) -> list[str]:
    """Return what a worker lacks for this need even when it is idle, as short phrases; nothing if it could do it."""
    has = {resource: offered(amount) for resource, amount in devices.items()}
    phrases = [
        f"{in_words(amount)} x {resource} (it has {in_words(has.get(resource, 0))})"
        for resource, amount in sorted(quantised(need.amounts).items())
        if has.get(resource, 0) < amount
    ]
    carried = set(labels)
    return phrases + [label_in_words(label) for label in need.labels if label not in carried]
