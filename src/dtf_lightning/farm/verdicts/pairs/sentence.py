"""The one sentence about a comparison. Its percentages are those that the method holds, and no others."""

from __future__ import annotations

import math

from dtf_lightning.farm.verdicts.pairs.comparison import Comparison
from dtf_lightning.farm.verdicts.pairs.spending import deviations
from dtf_lightning.farm.verdicts.pairs.verdict import Look, State, Verdict
from dtf_lightning.farm.verdicts.series import percent
from dtf_lightning.farm.verdicts.units import unit_of

_TIMED = frozenset({"s", "1/s", "B/s"})


def sentence(comparison: Comparison, verdict: Verdict, seconds: float | None = None) -> str:
    """Return what is told. `seconds`: that the comparison took."""
    spent = f"{verdict.num_pairs} pair{'' if verdict.num_pairs == 1 else 's'}"
    if seconds is not None:
        spent += f", {seconds:.0f} s"
    spent += f", on {'one device' if comparison.num_devices == 1 else f'{comparison.num_devices} devices'}"
    return f"{_told(comparison, verdict)}; {spent}"


def _told(comparison: Comparison, verdict: Verdict) -> str:
    plan, look = comparison.plan, verdict.look
    worse, better = words(comparison)
    name = f"{comparison.metric}: "
    delta = f"{100 * plan.delta:g} %"
    if verdict.state in (State.SLOWER, State.FASTER):
        assert look is not None  # a difference is seen at a look
        word = worse if verdict.state is State.SLOWER else better
        sure = f"{100 * (1 - plan.alpha):g} %"
        size = f"{name}{word} by {_size(look.estimate)} ({_between(look.low, look.high, worse, better)}; {sure} sure)"
        return (
            size
            if abs(look.estimate) >= math.log1p(plan.delta)
            else f"{size}, which may be less than the {delta} that matter"
        )
    if verdict.state is State.SAME:
        assert look is not None  # so is sameness
        return (
            f"{name}the same: no change of {delta} or more ({100 * plan.confidence:g} % sure); "
            f"{_between(look.same_low, look.same_high, worse, better)}{_side(look, worse, better)}"
        )
    if verdict.state is State.TOO_NOISY:
        assert look is not None  # so is noise
        return (
            f"{name}too noisy: pairs differ by {_size(look.spread)} as it is, so that {plan.max_pairs} of them could tell no change "
            f"below {_size(_visible(look, comparison))}"
        )
    chance = (
        f"; with up to {plan.max_pairs} pairs it would be decided with a chance of {100 * verdict.chance:.0f} %"
        if look
        else ""
    )
    return f"{name}could not tell: {verdict.reason or 'no more pairs were taken'}{chance}"


def words(comparison: Comparison) -> tuple[str, str]:
    """Return what a cost that rises, and one that falls, is called."""
    timed = unit_of(comparison.unit, comparison.metric).base in _TIMED
    return ("slower", "faster") if timed else ("worse", "better")


def _between(low: float, high: float, worse: str, better: str) -> str:
    if low >= 0 or high <= 0:
        near, far = sorted((low, high), key=abs)
        return f"between {_size(near)} and {_size(far)}"
    return f"between {_size(low)} {better} and {_size(high)} {worse}"


def _side(look: Look, worse: str, better: str) -> str:
    if look.same_low > 0:
        return f" {worse}"
    return f" {better}" if look.same_high < 0 else ""


def _size(log_ratio: float) -> str:
    """As percent of the base: half the time is 50 % faster, twice the time 100 % slower."""
    told = abs(percent(log_ratio))
    return f"{told:.2g} %" if told < 1 else f"{told:.1f} %"


def _visible(look: Look, comparison: Comparison) -> float:
    return deviations(comparison.plan.difference_levels[-1]) * look.spread / math.sqrt(comparison.plan.max_pairs)
