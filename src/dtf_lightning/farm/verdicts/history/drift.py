"""A slow drift, which no single step shows: the trend of the last 60 points, looked at every night.

There is one if the test of Mann (1945) and Kendall says so at p < .005, and the slope of Theil (1950) and Sen (1968) amounts to
more than 3 % over the window. Both go by order and medians, so that spikes do not matter. Points that resemble their
neighbours look like trends: the variance of the test's statistic grows by (1 + r) / (1 - r), where r is the correlation of
neighbours' ranks once the trend is taken out (after Hamed and Rao 1998). Without that, p < .001 called more than 2 % of
series a drift in which there was none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.series import Floats, percent

POINTS = 60
LEVEL = 0.005
SMALLEST = math.log(1.03)


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A trend over a window."""

    log_ratio: float
    """Of its end to its beginning; above 0 is worse."""
    p_value: float
    num_points: int

    @property
    def found(self) -> bool:
        """Whether it is told."""
        return self.p_value < LEVEL and abs(self.log_ratio) > SMALLEST

    @property
    def sentence(self) -> str:
        """What is told."""
        if not self.found:
            return f"no drift over {self.num_points} points"
        way = "slower" if self.log_ratio > 0 else "faster"
        return f"drifted {way} by {abs(percent(self.log_ratio)):.1f} % over {self.num_points} points"


def drift(costs: Floats) -> Drift:
    """Return the trend of the last 60 points of one level. Raises `SettingsError` for fewer than 10.

    Args:
        costs: logarithms, more is worse, shape (points,); of one level: a step would be taken for a trend.
    """
    window = costs[-POINTS:]
    num = len(window)
    if num < 10:
        raise SettingsError(f"a drift was looked for in {num} points; at least 10 are needed")
    earlier, later = np.triu_indices(num, 1)
    steps = window[later] - window[earlier]
    slope = float(np.median(steps / (later - earlier)))
    statistic = float(np.sign(steps).sum())
    _, ties = np.unique(window, return_counts=True)
    variance = (num * (num - 1) * (2 * num + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    variance *= _inflation(window - slope * np.arange(num)) if variance > 0 else 1.0
    if variance <= 0:
        return Drift(log_ratio=0.0, p_value=1.0, num_points=num)
    z = max(abs(statistic) - 1, 0) / math.sqrt(variance)
    return Drift(log_ratio=slope * (num - 1), p_value=math.erfc(z / math.sqrt(2)), num_points=num)


def _inflation(detrended: Floats) -> float:
    """Of the variance, by the correlation of neighbours' ranks."""
    if np.ptp(detrended) < 1e-9:  # nothing but rounding is left of it
        return 1.0
    ranks = np.argsort(np.argsort(detrended, kind="stable"), kind="stable").astype(np.float64)
    ranks -= ranks.mean()
    correlation = float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum())
    correlation = min(max(correlation, 0.0), 0.9)
    return (1 + correlation) / (1 - correlation)
