"""Wilcoxon's signed-rank test and the estimate of Hodges and Lehmann, exact for every number of pairs.

All of it comes from the Walsh averages: the means of each two differences, and of each with itself. The statistic is how many
of them lie above the value that is tested; their median is the estimate; their order statistics are the interval. Where
differences are zero or equal, an average that lies exactly on the tested value counts against a difference: that is what
the worst of all ways to break the ties would give, so that no error is more frequent than without ties.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dtf_lightning.farm.verdicts.series import Floats


def walsh_averages(differences: Floats) -> Floats:
    """Return the means of each two differences and of each with itself, sorted: shape (n (n + 1) / 2,)."""
    first, second = _pairs(len(differences))
    averages: Floats = 0.5 * (differences[first] + differences[second])
    averages.sort()
    return averages


@lru_cache(maxsize=64)
def _pairs(num: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(num)


@lru_cache(maxsize=1024)
def lower_tail(num: int) -> Floats:
    """Return the chance that the statistic is at most w, for w = 0 ... n (n + 1) / 2, if differences are as often above zero.

    By the recursion over ranks: each of 1 to n is in the sum or not, with chance 1/2.
    """
    chances = np.ones(1)
    for rank in range(1, num + 1):
        longer = np.zeros(len(chances) + rank)
        longer[: len(chances)] += chances
        longer[rank:] += chances
        chances = 0.5 * longer
    tail = np.minimum(np.cumsum(chances), 1.0)
    tail.flags.writeable = False
    return tail


def p_above(averages: Floats, num: int, value: float) -> float:
    """Return the chance of so many Walsh averages above `value`, or more, if differences are centred on `value`."""
    above = len(averages) - int(np.searchsorted(averages, value, side="right"))
    return _upper(num, above)


def p_below(averages: Floats, num: int, value: float) -> float:
    """Return the same for those below."""
    return _upper(num, int(np.searchsorted(averages, value, side="left")))


def _upper(num: int, statistic: int) -> float:
    # P(W >= w) = P(W <= total - w), since W is symmetric.
    tail = lower_tail(num)
    return float(tail[len(tail) - 1 - statistic])


def interval(averages: Floats, num: int, level: float) -> tuple[float, float]:
    """Return the values that the test does not refuse at this level on either side; infinite where it can refuse none."""
    cut = int(np.searchsorted(lower_tail(num), level, side="right"))  # P(W <= cut - 1) <= level
    if cut == 0:
        return -np.inf, np.inf
    return float(averages[cut - 1]), float(averages[len(averages) - cut])


def smallest_p(num: int) -> float:
    """Return the smallest two-sided p-value that so many pairs can give: all differences of one sign."""
    return float(min(1.0, 2.0 ** (1 - num)))
