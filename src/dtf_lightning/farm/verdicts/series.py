"""`Series`: the values of one metric, one after the other, checked and in its base unit.

All statistics of this room are of logarithms: a change of 5 % is the same distance at 1 ms and at 1 h, noise of timings is
nearer to symmetric, and ratios become differences. So values must be positive and finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.units import one_unit, unit_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Series:
    """One metric's values in the order of the commits (or runs) that they belong to."""

    metric: str
    values: tuple[float, ...]
    """In the base unit; positive and finite."""
    unit: str
    """The base unit, such as "s" or "B"."""
    higher_is_better: bool = False

    @classmethod
    def of(
        cls,
        metric: str,
        values: Sequence[float],
        unit: str | Sequence[str | None] | None,
        *,
        higher_is_better: bool | None = None,
        at_least: int = 2,
    ) -> Series:
        """Check values and bring them to their base unit.

        Args:
            unit: of all values, or one for each.
            higher_is_better: `None`: as usual for the unit (rates: yes).
            at_least: values that there must be.

        Raises `SettingsError` for a metric without unit or with units of different things, for values that are not finite
        or not positive, and for too few of them.
        """
        names = [unit] * len(values) if unit is None or isinstance(unit, str) else list(unit)
        if len(names) != len(values):
            raise SettingsError(
                f"the metric {metric!r} has {len(values)} values and {len(names)} units: expected as many"
            )
        if len(values) < max(at_least, 1):
            raise SettingsError(
                f"the metric {metric!r} has {len(values)} value{'' if len(values) == 1 else 's'}; at least {at_least} are "
                "needed to know its noise"
            )
        base, scales = one_unit(names, metric)
        if higher_is_better is None:
            higher_is_better = unit_of(names[0], metric).higher_is_better
        scaled = tuple(
            checked(value, metric, place) * scale
            for place, (value, scale) in enumerate(zip(values, scales, strict=True))
        )
        return cls(metric=metric, values=scaled, unit=base, higher_is_better=higher_is_better)

    @property
    def costs(self) -> Floats:
        """Logarithms, turned so that more is worse: shape (number of values,)."""
        logs = np.log(np.array(self.values, dtype=np.float64))
        return -logs if self.higher_is_better else logs


def checked(value: float, metric: str, place: int) -> float:
    """Return a value that can be compared. Raises `SettingsError` for any other; `place` starts at 0."""
    if not math.isfinite(value):
        raise SettingsError(
            f"value {place + 1} of the metric {metric!r} is {value}: leave runs out that gave no number, or mend the "
            "benchmark that reports it"
        )
    if value <= 0:
        raise SettingsError(
            f"value {place + 1} of the metric {metric!r} is {value:g}; expected more than 0, since changes are told in percent"
        )
    return float(value)


def percent(log_ratio: float) -> float:
    """Return a difference of logarithms as percent: 0.0488 is 5.0."""
    return 100.0 * math.expm1(log_ratio)
