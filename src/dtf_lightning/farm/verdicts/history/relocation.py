"""Where exactly a history took its steps: segmentation of the whole series, when all of its points are there.

The best division into levels by least squares, each of at least 3 points, with a penalty of 10 ln(n) sigma^2 a level (optimal
partitioning, Jackson et al. 2005). Single spikes are levelled out before, since the squares of one would outweigh a step.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dtf_lightning.farm.verdicts.history.alarms import Alarm
from dtf_lightning.farm.verdicts.series import Floats

SHORTEST = 3
PENALTY = 10.0
SPIKE = 4.0
"""Sigmas from the median of the 5 points around it."""
REACH = 10
"""Points that an alarm may be moved by."""


def level_starts(costs: Floats, sigma: float) -> list[int]:
    """Return where new levels begin, without the first at 0.

    Args:
        costs: logarithms of one series, shape (points,).
        sigma: of its noise, as `NoiseFloor` has it. With 0 nothing is levelled out, and each lasting change begins a level.
    """
    points = without_spikes(costs, sigma)
    num = len(points)
    sums = np.concatenate([[0.0], np.cumsum(points - points.mean())])
    squares = np.concatenate([[0.0], np.cumsum((points - points.mean()) ** 2)])
    penalty = max(PENALTY * np.log(max(num, 2)) * sigma**2, 1e-12)
    best = np.full(num + 1, np.inf)  # the cost of the first n points, divided at their best
    best[0] = 0.0
    previous = np.zeros(num + 1, dtype=np.int64)
    for end in range(SHORTEST, num + 1):
        starts = np.arange(end - SHORTEST + 1)
        lengths = end - starts
        costs_of = squares[end] - squares[starts] - (sums[end] - sums[starts]) ** 2 / lengths
        total = best[starts] + costs_of + penalty
        previous[end] = int(np.argmin(total))
        best[end] = total[previous[end]]
    found = []
    end = num
    while end >= SHORTEST and previous[end] > 0:
        end = int(previous[end])
        found.append(end)
    return found[::-1]


def without_spikes(costs: Floats, sigma: float) -> Floats:
    """Return the series with each single point that stands out replaced by the median of the 5 around it."""
    if len(costs) < 5 or sigma <= 0:
        return costs
    around = np.lib.stride_tricks.sliding_window_view(np.pad(costs, 2, mode="edge"), 5)  # shape (points, 5)
    medians = np.median(around, axis=1)
    return np.where(np.abs(costs - medians) > SPIKE * sigma, medians, costs)


def relocate(alarm: Alarm, costs: Floats, sigma: float) -> Alarm:
    """Return an alarm with its onset where the segmentation has a step of the same sign, at most 10 points away."""
    starts = level_starts(costs, sigma)
    edges = [0, *starts, len(costs)]
    fitting = [
        start
        for before, start, after in zip(edges, starts, edges[2:], strict=False)
        if abs(start - alarm.onset) <= REACH
        and (np.median(costs[start:after]) - np.median(costs[before:start])) * alarm.log_ratio > 0
    ]
    if not fitting:
        return alarm
    return replace(alarm, onset=min(fitting, key=lambda start: abs(start - alarm.onset)))
