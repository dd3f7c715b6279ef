"""The levels of a test that looks several times at growing data, so that all looks together err as seldom as was said.

An error is spent over the looks (Lan and DeMets 1983): each look may add its share. The level of a look is what makes
the chance of a first crossing at that look its share, given that the looks before did not cross. That is worked out for sums
of independent differences, which the signed-rank statistic approaches (Armitage, McPherson and Rowe 1969);
`tests/farm/verdicts/test_pairs.py` holds what is left of the approximation to the error that was said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from dtf_lightning.farm.verdicts.series import Floats

_GRID = 401
_FAR = 8.0
"""Standard deviations beyond which nothing lies."""


@lru_cache(maxsize=64)
def levels(looks: tuple[int, ...], shares: tuple[float, ...], error: float, *, two_sided: bool) -> tuple[float, ...]:
    """Return the one-sided level of each look; 0 where so few pairs cannot reach it, whose share then goes to the next one.

    Args:
        looks: pairs at each look, growing.
        shares: of the error, for each look; their sum is 1.
        error: of all looks together; of both sides together where the test is two-sided.
    """
    found: list[float] = []
    spent = 0.0
    grid, density = np.zeros(1), np.ones(1)  # of the sum before the first look: at 0
    before = 0
    for look, target in zip(looks, np.cumsum(shares) * error, strict=True):
        step = math.sqrt(look - before)
        bound, crossed = _bound(grid, density, look, step, float(target) - spent, two_sided)
        level = 0.5 * math.erfc(bound / math.sqrt(2))
        if level < 0.5**look:
            level, bound, crossed = 0.0, _FAR, 0.0
        found.append(float(f"{level:.10g}"))  # the same on machines whose last bits differ
        spent += crossed
        grid, density = _go_on(grid, density, look, step, bound, two_sided)
        before = look
    return tuple(found)


def _bound(
    grid: Floats, density: Floats, look: int, step: float, target: float, two_sided: bool
) -> tuple[float, float]:
    """Where a first crossing has the chance `target`: in standard deviations of the look; and that chance."""

    def crossing(bound: float) -> float:
        edge = bound * math.sqrt(look)
        chance = float((density * _above((edge - grid) / step)).sum())
        if two_sided:
            chance += float((density * _above((edge + grid) / step)).sum())
        return chance

    low, high = 0.0, _FAR
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if crossing(middle) > target else (low, middle)
    return high, crossing(high)


def _go_on(
    grid: Floats, density: Floats, look: int, step: float, bound: float, two_sided: bool
) -> tuple[Floats, Floats]:
    """The sum's distribution at a look, where it has not crossed: weights on a grid."""
    scale = math.sqrt(look)
    after = np.linspace(-(bound if two_sided else _FAR) * scale, bound * scale, _GRID)
    width = after[1] - after[0]
    kernel = np.exp(-0.5 * ((after[:, None] - grid[None, :]) / step) ** 2) / (step * math.sqrt(2 * math.pi))
    weights = (kernel * density[None, :]).sum(axis=1) * width
    weights[[0, -1]] *= 0.5
    return after, weights


def _above(z: Floats) -> Floats:
    return 0.5 * np.array([math.erfc(one) for one in z / math.sqrt(2)])


def deviations(level: float) -> float:
    """Return how many standard deviations leave `level` above them."""
    return NormalDist().inv_cdf(1 - level)


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Return weights whose sum is 1."""
    total = sum(weights)
    return tuple(weight / total for weight in weights)
