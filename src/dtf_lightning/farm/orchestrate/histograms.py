"""Histograms that are added up, and percentiles of the sum: a mean of percentiles says nothing of the whole. Pure.

A histogram is `{"edges": [0, 1, 2], "counts": [3, 4]}`: counts between neighbouring edges, of which there is one more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many values lie between neighbouring edges."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many values there are."""
        return sum(self.counts)

    def percentile(self, percent: float) -> float:
        """Return the value below which this much of all lies, evenly spread within a bin: off by one bin's width at most.

        Raises `ValueError` where there are no values.
        """
        if not self.total:
            raise ValueError("there are no values")
        rank = self.total * percent / 100
        below = 0
        for count, (low, high) in zip(self.counts, pairwise(self.edges), strict=True):
            if count and rank <= below + count:
                return low + (high - low) * max(rank - below, 0.0) / count
            below += count
        return max(high for count, high in zip(self.counts, self.edges[1:], strict=True) if count)


def read_histogram(value: Any) -> Histogram | str:
    """Return the histogram that a value stands for, or what is wrong with it."""
    if not isinstance(value, Mapping) or not {"edges", "counts"} <= value.keys():
        return "no histogram with `edges` and `counts`"
    edges, counts = value["edges"], value["counts"]
    if not isinstance(edges, list) or not isinstance(counts, list) or len(edges) != len(counts) + 1 or not counts:
        return "a histogram that has not one edge more than counts"
    if not all(_is_number(edge) for edge in edges) or any(low >= high for low, high in pairwise(edges)):
        return "a histogram whose edges do not grow"
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        return "a histogram whose counts are not whole numbers from 0 up"
    return Histogram(tuple(map(float, edges)), tuple(counts))


def added(histograms: Sequence[Histogram]) -> Histogram:
    """Return the sum of histograms with equal edges."""
    edges = histograms[0].edges
    assert all(one.edges == edges for one in histograms)
    return Histogram(edges, tuple(map(sum, zip(*(one.counts for one in histograms), strict=True))))


def percentile_of(values: Sequence[float], percent: float) -> float:
    """Return a percentile of values themselves, between neighbours in proportion. Raises `ValueError` where there are none."""
    if not values:
        raise ValueError("there are no values")
    ranked = sorted(values)
    place = (len(ranked) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (place - low)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
