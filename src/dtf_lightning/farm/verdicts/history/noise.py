"""`NoiseFloor`: how much a series varies while nothing changes, and so the smallest change that can be seen in it.

sigma is the larger one of two robust estimates over the last 30 points: 1.4826 times the median absolute deviation, and the
same of the differences between neighbours, over the square root of 2. The first alone misses noise that alternates, the
second alone noise that wanders. Both have a factor against their bias for few points (Croux and Rousseeuw 1992).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dtf_lightning.farm.verdicts.series import Floats, Series

WINDOW = 30
"""Points that the floor is made of."""
SIGMAS = 3.0
SMALLEST = float(np.log(1.02))
"""A change below 2 % is none, however quiet the series."""
_NORMAL = 1.4826
"""Median absolute deviations of normal noise in its standard deviation."""


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Of one series, in logarithms."""

    center: float
    sigma: float
    num_points: int

    @classmethod
    def of(cls, series: Series) -> NoiseFloor:
        """Return the floor of a series' last 30 points."""
        costs = series.costs[None, -WINDOW:]
        centers, sigmas = floors(costs, np.array([costs.shape[1]]))
        return cls(center=float(centers[0]), sigma=float(sigmas[0]), num_points=costs.shape[1])

    @property
    def is_constant(self) -> bool:
        """Whether no noise was seen: a count of something, a value that is cached, or a clock too coarse to see any."""
        return self.sigma == 0.0

    @property
    def smallest_visible(self) -> float:
        """The smallest change of one point that stands out, as a fraction: 0.05 is 5 %."""
        return float(np.expm1(max(SIGMAS * self.sigma, SMALLEST)))


def floors(points: Floats, counts: np.ndarray) -> tuple[Floats, Floats]:
    """Return centers and sigmas of many series at once, each of shape (series,).

    Args:
        points: logarithms, shape (series, window); the last ones of each series, at the right.
        counts: how many of them belong to each series, shape (series,); at least 1.
    """
    window = points.shape[1]
    # shape (series, window): whether a point belongs to its series.
    inside = np.arange(window)[None, :] >= window - counts[:, None]
    centers = _medians(np.where(inside, points, np.inf), counts)
    deviations = _medians(np.where(inside, np.abs(points - centers[:, None]), np.inf), counts)
    sigmas = _NORMAL * deviations * _for_few(counts)
    if window > 1:
        steps = np.where(inside[:, :-1], np.abs(np.diff(points, axis=1)), np.inf)
        of_steps = _medians(steps, np.maximum(counts - 1, 1))
        of_steps = np.where(counts > 1, of_steps, 0.0)
        sigmas = np.maximum(sigmas, _NORMAL / np.sqrt(2.0) * of_steps * _for_few(counts))
    return centers, sigmas


def _medians(padded: Floats, counts: np.ndarray) -> Floats:
    """Medians of each row's first `counts` smallest values; the others are infinite."""
    padded.sort(axis=1)
    rows = np.arange(len(padded))
    medians: Floats = 0.5 * (padded[rows, (counts - 1) // 2] + padded[rows, counts // 2])
    return medians


def _for_few(counts: np.ndarray) -> Floats:
    factors: Floats = counts / (counts - 0.8)
    return factors
