"""Which points of a history stand out, and where it has taken a step: the rule "floor + 4 of 5" over many series at once.

Rules that this file guards:
- A point is **suspect** if it lies beyond the floor: max(3 sigma, 2 %) from the center of the last 30 accepted points. A
  suspect is never told to anybody: it is a reason to buy samples.
- An **alarm** is what is told where no samples can be bought: 4 of the last 5 points beyond the floor on one side.
- Points are accepted when they leave the window of 5, so that a step does not raise its own floor. After an alarm the floor
  begins anew where the step began.

The rule and its figures are measured: `docs/verdicts.md` names the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtf_lightning.farm.verdicts.history.noise import SIGMAS, SMALLEST, WINDOW, floors
from dtf_lightning.farm.verdicts.series import Floats, Series

LATEST, NEEDED = 5, 4
FEWEST = 8
"""Accepted points without which nothing is said."""


@dataclass(frozen=True, kw_only=True, order=True)
class Alarm:
    """A step in one series."""

    series: int
    """Its index among those that were scanned; starts at 0, as all indices here."""
    onset: int
    """The first point of the new level, as the window of 5 shows it; `relocate` knows better."""
    seen_at: int
    """The point with which it became an alarm."""
    log_ratio: float
    """New level over old one, as a logarithm; above 0 is worse."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What was seen in many histories."""

    suspects: np.ndarray
    """Shape (series, points), bool."""
    alarms: tuple[Alarm, ...]
    """Ordered by series and onset."""


def scan_series(series: Sequence[Series]) -> Scan:
    """Scan series of any lengths."""
    if not series:
        return Scan(suspects=np.zeros((0, 0), dtype=bool), alarms=())
    costs = np.full((len(series), max(len(one.values) for one in series)), np.nan)
    for row, one in zip(costs, series, strict=True):
        row[: len(one.values)] = one.costs
    return scan(costs)


def scan(costs: Floats) -> Scan:
    """Scan many histories.

    Args:
        costs: logarithms, more is worse, shape (series, points); NaN behind the end of shorter series.
    """
    num_series, num_points = costs.shape
    suspects = np.zeros(costs.shape, dtype=bool)
    starts = np.zeros(num_series, dtype=np.int64)  # of the level that each series is at
    beyond = np.zeros((num_series, LATEST), dtype=np.int8)  # of the latest points: 1 above the floor, -1 below, else 0
    alarms: list[Alarm] = []
    padded = np.concatenate([np.zeros((num_series, WINDOW)), costs], axis=1)
    for point in range(FEWEST + LATEST - 1, num_points):
        accepted = point - LATEST + 1  # points before this one are accepted
        counts = np.minimum(accepted - starts, WINDOW)
        ready = (counts >= FEWEST) & ~np.isnan(costs[:, point])
        if not ready.any():
            continue
        # padded[:, WINDOW + i] is point i: these are the WINDOW points before `accepted`, shape (series, WINDOW).
        centers, sigmas = floors(padded[:, accepted : accepted + WINDOW], np.maximum(counts, 1))
        limits = np.maximum(SIGMAS * sigmas, SMALLEST)
        latest = costs[:, accepted : point + 1] - centers[:, None]  # shape (series, LATEST)
        with np.errstate(invalid="ignore"):
            beyond = (latest > limits[:, None]).astype(np.int8) - (latest < -limits[:, None]).astype(np.int8)
        suspects[:, point] = ready & (beyond[:, -1] != 0)
        for sign in (1, -1):
            for row in np.flatnonzero(ready & ((beyond == sign).sum(axis=1) >= NEEDED)):
                onset = accepted + int(np.argmax(beyond[row] == sign))
                ratio = float(np.median(latest[row][beyond[row] == sign]))
                alarms.append(Alarm(series=int(row), onset=onset, seen_at=point, log_ratio=ratio))
                starts[row] = onset
    return Scan(suspects=suspects, alarms=tuple(sorted(alarms)))
