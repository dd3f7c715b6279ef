"""What is decided before the first pair: how large a change matters, how often may be erred, at how many pairs is looked,
and which of the two programs runs first in each pair.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.pairs.signed_rank import smallest_p
from dtf_lightning.farm.verdicts.pairs.spending import levels, normalised

LOOKS = (10, 16, 25, 40, 64, 100, 140, 200)
"""Pairs at which it is looked; with fewer than 10 no difference can be told at the usual error."""


class Side(Enum):
    """Which program a sample is of."""

    BASE = "base"
    CANDIDATE = "candidate"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Of one comparison."""

    delta: float = 0.03
    """The smallest change that matters, as a fraction."""
    alpha: float = 0.01
    """How often two equal programs may be told slower or faster, over all looks and both sides."""
    confidence: float = 0.95
    """One minus how often programs that differ by `delta` or more may be told the same, over all looks."""
    max_pairs: int = 200

    def __post_init__(self) -> None:
        if not 0.0005 <= self.delta <= 1:
            raise SettingsError(
                f"the smallest change that matters is {self.delta}; expected .0005 (.05 %) to 1 (100 %)"
            )
        if not 0 < self.alpha <= 0.2:
            raise SettingsError(f"alpha is {self.alpha}; expected more than 0 and at most .2")
        if not 0.8 <= self.confidence < 1:
            raise SettingsError(f"the confidence is {self.confidence}; expected .8 or more and less than 1")
        if not LOOKS[0] <= self.max_pairs <= 10_000:
            raise SettingsError(
                f"{self.max_pairs} pairs are asked for; expected {LOOKS[0]} to 10000: fewer than {LOOKS[0]} cannot tell "
                "programs apart at the usual error"
            )

        if not self.difference_levels[-1] or not self.equivalence_levels[-1]:
            raise SettingsError(
                f"{self.max_pairs} pairs can decide nothing at alpha {self.alpha:g} and confidence {self.confidence:g}, whatever they "
                "show: ask for more pairs, or be less strict (several metrics share alpha)"
            )

    @property
    def looks(self) -> tuple[int, ...]:
        """Pairs at which it is looked; the last one is `max_pairs`. Beyond 200 each look has 1.4 times as many as the last."""
        looks = [look for look in LOOKS if look < self.max_pairs]
        while looks[-1:] and looks[-1] >= LOOKS[-1] and looks[-1] * 1.4 < self.max_pairs:
            looks.append(int(looks[-1] * 1.4))
        return (*looks, self.max_pairs)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of alpha, for each look. The first has a fifth, since 10 pairs can reach no smaller p-value."""
        others = len(self.looks) - 1
        return (0.2, *[0.8 / others] * others) if others else (1.0,)

    @property
    def difference_levels(self) -> tuple[float, ...]:
        """For each look, the one-sided level at which a difference is told."""
        return levels(self.looks, self.shares, self.alpha, two_sided=True)

    @property
    def equivalence_levels(self) -> tuple[float, ...]:
        """For each look, the level of both one-sided tests of sameness; most of the error is kept for many pairs."""
        weights = [1.0, 1.0, 1.0, *[math.sqrt(look) / 4 for look in self.looks[3:]]][: len(self.looks)]
        return levels(self.looks, normalised(weights), 1 - self.confidence, two_sided=False)

    @property
    def smallest_p(self) -> float:
        """The smallest p-value that a comparison can end with, for `discoveries`: it may end at its first look."""
        return min(1.0, smallest_p(self.looks[0]) / self.shares[0])


def first_of_pair(seed: str, pair: int) -> Side:
    """Return which program runs first in a pair: a coin that is tossed by a hash, so that the order can be checked.

    Args:
        seed: drawn at random when the comparison begins, by no one who knows the programs.
        pair: starts at 0.
    """
    coin = hashlib.sha256(f"{seed}/{pair}".encode()).digest()[0] & 1
    return (Side.BASE, Side.CANDIDATE)[coin]
