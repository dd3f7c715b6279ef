"""What a task asks of one worker, and amounts of resources as whole numbers.

Rules that this file guards:
- Amounts are compared and added as whole thousandths, so that taking and giving back a third of a device a million times
  leaves what was there. What is asked for is rounded up, what is offered down: never more is given than there is.
- No amount, however strange, raises: it may stand in the record already, and every coordinator would die of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

CPU = "cpu"
MEMORY = "memory"
"""In MiB."""

THOUSANDTHS = 1000
BEYOND = 1 << 60
"""Thousandths that no worker has."""
_NOISE = 1e-6
"""Thousandths by which a float may be off: 0.1 * 1000 is a little more than 100."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one worker must offer for a task.

    Args:
        amounts: resource -> how much of it, such as `{"cpu": 2, "memory": 4096, "gpu": 1}`; memory in MiB. An amount that
            is not positive is not asked for; where nothing is, one cpu is.
        labels: what must stand among the worker's labels.
        exclusive: nothing else may run on the worker meanwhile.
    """

    amounts: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    exclusive: bool = False


ONE_CPU = Need(amounts={CPU: 1.0})


def asked(amount: float) -> int:
    """Thousandths that a need of this amount takes; 0 for what is no positive number."""
    if not amount > 0:
        return 0
    if amount >= BEYOND / THOUSANDTHS:
        return BEYOND
    return max(1, math.ceil(amount * THOUSANDTHS - _NOISE))


def offered(amount: float) -> int:
    """Thousandths that a worker with this amount has; 0 for what is no positive number."""
    if not amount > 0:
        return 0
    return math.floor(min(amount * THOUSANDTHS + _NOISE, BEYOND - 1))


def scarce_first(resource: str) -> tuple[int, str]:
    """Orders resources: accelerators and whatever else before cpu, cpu before memory."""
    return {CPU: 1, MEMORY: 2}.get(resource, 0), resource


def in_words(thousandths: int) -> str:
    """`2000` is "2", `500` is "0.5"."""
    return f"{thousandths / THOUSANDTHS:g}" if thousandths % THOUSANDTHS else str(thousandths // THOUSANDTHS)
