"""Many comparisons at once: which of them are told, so that at most 5 % of what is told is false (Benjamini, Hochberg 1995)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dtf_lightning.errors import SettingsError

RATE = 0.05


@dataclass(frozen=True, kw_only=True)
class Discoveries:
    """What is told of many comparisons."""

    told: tuple[bool, ...]
    """For each, in their order."""
    num_tested: int
    threshold: float
    """The largest p-value that is told; 0 if none is."""
    warning: str
    """Why a true difference may have stayed untold; "" if nothing of the plan forbids it."""


def discoveries(p_values: Sequence[float], *, smallest: float = 0.0, rate: float = RATE) -> Discoveries:
    """Choose among comparisons of one commit and device class.

    Args:
        p_values: one of each comparison that was made, also of those that found nothing.
        smallest: the smallest p-value that the plan of a comparison can reach (`smallest_p`).
        rate: the share of false ones among those that are told, on average.

    Raises `SettingsError` for a p-value that is none.
    """
    values = np.array(p_values, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise SettingsError("a p-value lies between 0 and 1; leave comparisons out that came to no end")
    num = len(values)
    ordered = np.sort(values)
    passing = np.flatnonzero(ordered <= rate * np.arange(1, num + 1) / max(num, 1))
    threshold = float(ordered[passing[-1]]) if len(passing) else 0.0
    told = tuple(bool(one) for one in values <= threshold) if len(passing) else (False,) * num
    return Discoveries(told=told, num_tested=num, threshold=threshold, warning=_warning(num, smallest, rate))


def _warning(num: int, smallest: float, rate: float) -> str:
    if not num or smallest <= rate / num:
        return ""
    together = math.ceil(smallest * num / rate)
    return (
        f"of {num} comparisons one alone is told only at p <= {rate / num:.2g}, and this plan reaches {smallest:.2g} at best: "
        f"fewer than {together} differences at once cannot be told; plan more pairs, a smaller alpha, or fewer comparisons"
    )
