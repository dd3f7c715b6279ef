"""`Verdict`: slower, faster, same, too noisy or given up; decided at looks, said in one sentence, and recomputed bit for bit.

At each look of the plan two questions are asked of the differences so far, each with its own error spent over the looks:

- Is there a difference (signed-rank test, two-sided)? Once it is seen, it stays seen.
- Are the programs the same: is a change of `delta` or more refused on both sides (two one-sided tests), by the ranks of the
  differences and by their trimmed mean as well? Ranks alone call programs with two modes the same however far the modes
  are apart, since a difference of one mode each way balances.

A difference that is seen ends the comparison if its estimate is at least `delta`; a smaller one is measured on, since programs
may differ and still be the same for who asked. Where not even all pairs of the plan would decide (by the predicted distribution
of the estimate, chance below 5 %), it is too noisy; that may end a comparison, and never makes a decision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from typing import Any

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison
from dtf_lightning.farm.verdicts.pairs.plan import Plan
from dtf_lightning.farm.verdicts.pairs.signed_rank import interval, p_above, p_below, walsh_averages
from dtf_lightning.farm.verdicts.pairs.spending import deviations
from dtf_lightning.farm.verdicts.pairs.trimmed import trimmed_interval
from dtf_lightning.farm.verdicts.series import Floats

METHOD = "signed rank, 1"
"""Names these rules; verdicts by others are not recomputed by these."""
FUTILE = 0.05
"""Chance of a decision below which it is too noisy."""
FUTILE_FROM = 25
"""Pairs."""


class State(Enum):
    """What is told."""

    SLOWER = "slower"
    FASTER = "faster"
    SAME = "same"
    TOO_NOISY = "too noisy"
    GAVE_UP = "gave up"


class ReplayDiffers(DtfError):
    """A stored verdict is not what its samples give."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """What so many pairs say. Logarithms of candidate over base; above 0 is worse."""

    num_pairs: int
    estimate: float
    low: float
    high: float
    """Of the interval that has the true difference at all looks together with chance 1 - alpha; infinite with few pairs."""
    same_low: float
    same_high: float
    """Of the interval that lies within delta where the programs are the same; its error is that of `confidence`."""
    p_value: float
    """Two-sided, of this look alone."""
    spread: float
    """Standard deviation of the differences, as the interval's width tells it; infinite with few pairs."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one metric of two programs."""

    state: State
    look: Look | None
    """The one that decided, or the last one; `None` if there was none."""
    num_pairs: int
    """Taken."""
    p_value: float
    """Of "no difference" over all looks, for `discoveries`: each look's, over its share (Bonferroni)."""
    chance: float
    """That more pairs of the plan decide, where nothing is decided; else 0."""
    reason: str
    """Why it was given up; else ""."""
    method: str = METHOD

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with every bit of its numbers."""
        body = {**dataclasses.asdict(self), "state": self.state.value}
        if self.look is not None:
            body["look"] = {name: _finite(value) for name, value in body["look"].items()}
        return body

    @classmethod
    def replay(cls, comparison: Mapping[str, Any], verdict: Mapping[str, Any]) -> Verdict:
        """Recompute a verdict from its stored comparison, and compare every bit.

        Raises `ReplayDiffers` with the first thing that differs; `SettingsError` for a verdict by other rules, and for a
        comparison that must be refused.
        """
        if verdict.get("method") != METHOD:
            raise SettingsError(
                f"the verdict was made by {verdict.get('method')!r}, this version has {METHOD!r}: use the version that made it"
            )
        again = judge(Comparison.from_json(comparison), ended=str(verdict.get("reason", "")))
        for name, value in again.to_json().items():
            if verdict.get(name) != value:
                raise ReplayDiffers(
                    f"the samples give {name} = {value!r}, and the stored verdict has {verdict.get(name)!r}: samples or "
                    "verdict were changed after it was made"
                )
        return again


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a comparison stands."""

    state: State | None
    """`None`: more pairs may decide."""
    looks: tuple[Look, ...]
    seen: State | None
    """The difference that was seen at some look."""
    next_look: int
    """Pairs at the next look; 0 after the last one."""
    chance: float


def progress(differences: Floats, plan: Plan) -> Progress:
    """Look at the differences at each look that there are enough of, until one decides."""
    looks: list[Look] = []
    seen: State | None = None
    chance = 1.0
    delta = math.log1p(plan.delta)
    for place, num in enumerate(plan.looks):
        if num > len(differences):
            return Progress(state=None, looks=tuple(looks), seen=seen, next_look=num, chance=chance)
        difference_level, same_level = plan.difference_levels[place], plan.equivalence_levels[place]
        averages = walsh_averages(differences[:num])
        look = _look(differences[:num], averages, difference_level, same_level)
        looks.append(look)
        if seen is None and look.p_value <= 2 * difference_level:
            seen = State.SLOWER if look.estimate > 0 else State.FASTER
        state = None
        if -delta < look.same_low and look.same_high < delta:
            state = State.SAME
        elif seen is not None and (abs(look.estimate) >= delta or num == plan.looks[-1]):
            state = seen
        chance = _chance(look, plan, delta) if state is None and num < plan.looks[-1] else 0.0
        if state is None and seen is None and (num == plan.looks[-1] or (num >= FUTILE_FROM and chance < FUTILE)):
            state = State.TOO_NOISY
        if state is not None:
            return Progress(state=state, looks=tuple(looks), seen=seen, next_look=0, chance=0.0)
    raise AssertionError("the last look decides")


def judge(comparison: Comparison, *, ended: str = "") -> Verdict:
    """Return the verdict on the samples that there are.

    Args:
        ended: why no more are taken, such as "the budget of 60 s is spent"; told where they do not decide.
    """
    now = progress(comparison.differences, comparison.plan)
    shares = comparison.plan.shares
    p_value = min([1.0, *(look.p_value / share for look, share in zip(now.looks, shares, strict=False))])
    state = now.state or now.seen or State.GAVE_UP
    return Verdict(
        state=state,
        look=now.looks[-1] if now.looks else None,
        num_pairs=comparison.num_pairs,
        p_value=p_value,
        chance=now.chance if state is State.GAVE_UP else 0.0,
        reason=ended if state is State.GAVE_UP else "",
    )


def _finite(value: float) -> float | None:
    """As JSON can hold it: an interval without end has `None` there."""
    return value if math.isfinite(value) else None


def _look(differences: Floats, averages: Floats, difference_level: float, same_level: float) -> Look:
    num = len(differences)
    low, high = interval(averages, num, difference_level)
    by_rank, by_mean = interval(averages, num, same_level), trimmed_interval(differences, same_level)
    same_low, same_high = min(by_rank[0], by_mean[0]), max(by_rank[1], by_mean[1])
    middle = len(averages) // 2
    estimate = float(averages[middle] if len(averages) % 2 else 0.5 * (averages[middle - 1] + averages[middle]))
    spread = math.inf
    if math.isfinite(same_low):
        spread = 0.5 * (same_high - same_low) / deviations(same_level) * math.sqrt(num)
    return Look(
        num_pairs=num,
        estimate=estimate,
        low=low,
        high=high,
        same_low=same_low,
        same_high=same_high,
        p_value=min(1.0, 2 * min(p_above(averages, num, 0.0), p_below(averages, num, 0.0))),
        spread=spread,
    )


def _chance(look: Look, plan: Plan, delta: float) -> float:
    """That the last look of the plan decides, if the differences go on as they are: with no guess of the true one."""
    if not math.isfinite(look.spread):
        return 1.0
    last = look.spread / math.sqrt(plan.max_pairs)
    wander = look.spread * math.sqrt(1 / look.num_pairs - 1 / plan.max_pairs)
    if wander == 0:
        return 1.0
    ahead = NormalDist(look.estimate, wander)
    told = deviations(plan.difference_levels[-1]) * last
    same = delta - deviations(plan.equivalence_levels[-1]) * last
    chance = ahead.cdf(-told) + 1 - ahead.cdf(told)
    return min(1.0, chance + (max(ahead.cdf(same) - ahead.cdf(-same), 0.0) if same > 0 else 0.0))
