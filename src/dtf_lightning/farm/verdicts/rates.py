"""How often something happens, and between what it may lie (Clopper and Pearson 1934)."""

from __future__ import annotations

import math
from collections.abc import Callable


def interval(happened: int, runs: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return between which rates the true one lies: rates beyond it would give what was seen too seldom.

    Args:
        happened: how often, of `runs` that are independent.
        confidence: the interval has the true rate at least so often, whatever that is.
    """
    assert 0 <= happened <= runs
    tail = (1 - confidence) / 2
    # At the low end so many or more are seldom, at the high end so many or fewer.
    low = 0.0 if happened == 0 else _where(lambda rate: 1 - _at_most(happened - 1, runs, rate) >= tail)
    high = 1.0 if happened == runs else _where(lambda rate: _at_most(happened, runs, rate) <= tail)
    return low, high


def _at_most(happened: int, runs: int, rate: float) -> float:
    """Chance of so many or fewer."""
    return math.fsum(math.comb(runs, one) * rate**one * (1 - rate) ** (runs - one) for one in range(happened + 1))


def _where(holds: Callable[[float], bool]) -> float:
    """The smallest rate at which something holds that holds for all greater ones."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
