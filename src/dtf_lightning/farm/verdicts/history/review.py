"""`review`: all that the histories of many series tell, one line for each: its noise, its steps, its drift. No suspects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtf_lightning.farm.verdicts.history.alarms import Alarm, scan_series
from dtf_lightning.farm.verdicts.history.drift import Drift, drift
from dtf_lightning.farm.verdicts.history.noise import WINDOW, NoiseFloor, floors
from dtf_lightning.farm.verdicts.history.relocation import relocate
from dtf_lightning.farm.verdicts.series import Series

ENOUGH = 30
"""Points of a level in which a drift is looked for."""


@dataclass(frozen=True, kw_only=True)
class Reviewed:
    """What one series tells."""

    series: Series
    steps: tuple[Alarm, ...]
    """Relocated; in the order of their onsets."""
    floor: NoiseFloor
    """Of the level that it is at."""
    drift: Drift | None
    """Of that level; `None` where it has too few points."""


def review(series: Sequence[Series]) -> list[Reviewed]:
    """Look through series, each of 2 points or more; those below 13 points can show no step."""
    found: list[list[Alarm]] = [[] for _ in series]
    for alarm in scan_series(series).alarms:
        found[alarm.series].append(alarm)
    return [_reviewed(one, alarms) for one, alarms in zip(series, found, strict=True)]


def _reviewed(series: Series, alarms: Sequence[Alarm]) -> Reviewed:
    costs = series.costs
    steps = []
    for alarm in alarms:
        before = costs[None, max(alarm.onset - WINDOW, 0) : alarm.onset].copy()
        _, sigmas = floors(before, np.array([before.shape[1]]))
        steps.append(relocate(alarm, costs, float(sigmas[0])))
    start = steps[-1].onset if steps else 0
    level = costs[start:]
    centers, sigmas = floors(level[None, -WINDOW:].copy(), np.array([len(level[-WINDOW:])]))
    return Reviewed(
        series=series,
        steps=tuple(steps),
        floor=NoiseFloor(center=float(centers[0]), sigma=float(sigmas[0]), num_points=len(level[-WINDOW:])),
        drift=drift(level) if len(level) >= ENOUGH else None,
    )
