"""The interval of a trimmed mean (Tukey and McLaughlin 1963): a tenth on either side is left out, so that spikes do not count."""

from __future__ import annotations

import math

from dtf_lightning.farm.verdicts.pairs.spending import deviations
from dtf_lightning.farm.verdicts.series import Floats

TRIMMED = 0.1


def trimmed_interval(differences: Floats, level: float) -> tuple[float, float]:
    """Return the interval that has the mean of the middle four fifths outside on each side with chance `level`."""
    if level <= 0:
        return -math.inf, math.inf
    ordered = sorted(float(one) for one in differences)
    num = len(ordered)
    cut = int(TRIMMED * num)
    kept = num - 2 * cut
    middle = ordered[cut : num - cut]
    center = math.fsum(middle) / kept
    # Winsorised: what is left out counts as the outermost that is not.
    pulled = [middle[0]] * cut + middle + [middle[-1]] * cut
    average = math.fsum(pulled) / num
    variance = math.fsum((one - average) ** 2 for one in pulled) / (kept * (kept - 1))
    half = _student(deviations(level), kept - 1) * math.sqrt(variance)
    return center - half, center + half


def _student(z: float, freedom: int) -> float:
    """Student's t at the level of a normal deviation z (the expansion of Cornish and Fisher, for 5 degrees of freedom or more)."""
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
