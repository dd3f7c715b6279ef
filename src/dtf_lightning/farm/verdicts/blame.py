"""Whose fault a red result is: the code's, the test's own (a flake), the worker's, or the environment's.

A failure is run again, on the base or the candidate and on the same or another worker, where that tells the most about its cause
(Lindley 1956), until one cause is sure or the budget is spent. What each cause leads one to expect is `HYPOTHESES`; what was seen
weighs them by Bayes' rule.

Rules that this file guards:
- The failure that began it is not counted again: the prior is that of causes *given* a failure. Counting it calls flakes code.
- A pass alone does not make a flake: a sick worker and a changed environment may let a test pass elsewhere, too. "Three tries, one
  passes: flaky" is what this replaces.
- Nothing is blamed that is not sure; then the likeliest cause is told as what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from dtf_lightning.errors import SettingsError

SURE = 0.97
MAX_RERUNS = 14
"""Few failures need so many: the mean is about four."""


class Cause(Enum):
    """Of a failure."""

    CODE = "code"
    FLAKE = "flake"
    WORKER = "worker"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, kw_only=True, order=True)
class Rerun:
    """One way to run the test again."""

    on_base: bool
    """Of the base's code, where the test had passed; else the candidate's."""
    elsewhere: bool
    """On another worker of the device class; else on the one where it failed."""


RERUNS = tuple(Rerun(on_base=on_base, elsewhere=elsewhere) for on_base in (False, True) for elsewhere in (False, True))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a rerun gave."""

    rerun: Rerun
    failed: bool


@dataclass(frozen=True, kw_only=True)
class Past:
    """How the test fared before, when neither code nor worker nor environment was to blame: it tells how flaky it is."""

    passed: int = 0
    failed: int = 0
    """On code on which it passed, too."""


MAX_PAST = 30
"""Earlier runs that count: a test may have become flaky since."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """One way in which a cause shows: how often the test fails in each kind of rerun."""

    cause: Cause
    weight: float
    """Share of its cause."""
    candidate_here: float
    candidate_elsewhere: float
    base_here: float
    base_elsewhere: float

    def chance(self, rerun: Rerun) -> float:
        """Of a failure."""
        if rerun.on_base:
            return self.base_elsewhere if rerun.elsewhere else self.base_here
        return self.candidate_elsewhere if rerun.elsewhere else self.candidate_here


_RARE = 0.01
"""A failure by anything else; so that no single rerun ever makes a cause impossible."""


def _everywhere(cause: Cause, weight: float, rate: float) -> Hypothesis:
    return Hypothesis(
        cause=cause, weight=weight, candidate_here=rate, candidate_elsewhere=rate, base_here=rate, base_elsewhere=rate
    )


_RATES = (0.02, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)
"""How often flakes fail."""


def _flakes() -> Iterator[Hypothesis]:
    """Flakes fail at rates of a beta distribution (1, 9), most of them seldom; given that one failed, it is (2, 9)."""
    edges = [0.0, *((low + high) / 2 for low, high in pairwise(_RATES)), 1.0]
    weights = [rate * (1 - rate) ** 8 * (high - low) for rate, low, high in zip(_RATES, edges, edges[1:], strict=False)]
    for rate, weight in zip(_RATES, weights, strict=True):
        yield _everywhere(Cause.FLAKE, weight / math.fsum(weights), rate)


def _sick(rate: float, weight: float) -> Hypothesis:
    return Hypothesis(
        cause=Cause.WORKER, weight=weight,
        candidate_here=rate, candidate_elsewhere=_RARE, base_here=rate, base_elsewhere=_RARE,
    )  # fmt: skip


HYPOTHESES = (
    Hypothesis(
        cause=Cause.CODE, weight=1.0,
        candidate_here=0.98, candidate_elsewhere=0.98, base_here=_RARE, base_elsewhere=_RARE,
    ),
    *_flakes(),
    _sick(0.98, 0.6), _sick(0.9, 0.25), _sick(0.75, 0.15),
    _everywhere(Cause.ENVIRONMENT, 1.0, 0.98),
)  # fmt: skip

PRIOR: Mapping[Cause, float] = dict.fromkeys(Cause, 0.25)
"""Of causes, given a failure of a test that had passed on the base; where nothing is known of test, change and worker."""

UNCHANGED: Mapping[Cause, float] = {**dict.fromkeys(Cause, 1 / 3), Cause.CODE: 1e-6}
"""Where the code is the one with which the test has passed."""


@dataclass(frozen=True, kw_only=True)
class Blame:
    """What was found."""

    cause: Cause | None
    """`None`: not sure."""
    chances: Mapping[Cause, float]
    seen: tuple[Seen, ...]

    @property
    def likeliest(self) -> Cause:
        return max(self.chances, key=lambda cause: self.chances[cause])

    @property
    def sentence(self) -> str:
        """What is told, with the evidence in words."""
        chance = f"{100 * self.chances[self.likeliest]:.1f} %"
        count = f"{len(self.seen)} rerun{'' if len(self.seen) == 1 else 's'}"
        evidence = "; ".join(_words(self.seen)) or "it was not run again"
        if self.cause is None:
            return f"not sure: perhaps {_FAULT[self.likeliest]} ({chance}): {evidence} ({count})"
        return f"{_FAULT[self.cause]} ({chance} sure): {evidence} ({count})"


_FAULT = {
    Cause.CODE: "the candidate's code",
    Cause.FLAKE: "a flaky test",
    Cause.WORKER: "the worker on which it failed",
    Cause.ENVIRONMENT: "the environment, which has changed since the base passed",
}


def blame(
    seen: Iterable[Seen] = (), prior: Mapping[Cause, float] = PRIOR, *, past: Past | None = None, sure: float = SURE
) -> Blame:
    """Weigh what was seen. Raises `SettingsError` for a prior that is none."""
    seen = tuple(seen)
    weights = _weights(seen, prior, past)
    chances = _by_cause(weights)
    likeliest = max(chances, key=lambda cause: chances[cause])
    return Blame(cause=likeliest if chances[likeliest] >= sure else None, chances=chances, seen=seen)


def next_rerun(
    seen: Sequence[Seen] = (),
    prior: Mapping[Cause, float] = PRIOR,
    *,
    past: Past | None = None,
    costs: Mapping[Rerun, float] | None = None,
    budget: float = MAX_RERUNS,
    sure: float = SURE,
    worth: float = 1e-6,
) -> Rerun | None:
    """Return the rerun that tells the most for what it costs; `None` if a cause is sure or none can be afforded.

    Args:
        costs: of the reruns that are possible, such as seconds; without one: all four, 1 each. Where there is no other worker,
            leave those elsewhere out.
        budget: what may be spent on all reruns, those that were seen among them.
        worth: bits about the cause that a rerun must be expected to tell for 1 of its cost.
    """
    costs = dict.fromkeys(RERUNS, 1.0) if costs is None else costs
    if any(not 0 < cost < math.inf for cost in costs.values()):
        raise SettingsError("the cost of a rerun must be more than 0")
    if blame(seen, prior, past=past, sure=sure).cause is not None:
        return None
    left = budget - sum(costs.get(one.rerun, 0.0) for one in seen)
    weights = _weights(seen, prior, past)
    gains = {rerun: _gain(weights, rerun) / cost for rerun, cost in sorted(costs.items()) if cost <= left}
    if not gains:
        return None
    best = max(gains, key=lambda rerun: gains[rerun])
    return best if gains[best] > worth else None


def _weights(seen: Sequence[Seen], prior: Mapping[Cause, float], past: Past | None) -> list[float]:
    """Of each hypothesis; their sum is 1."""
    if set(prior) != set(Cause) or any(chance <= 0 for chance in prior.values()):
        raise SettingsError(f"a prior gives each of {', '.join(cause.value for cause in Cause)} a chance above 0")
    weights = []
    passed, failed = (min(past.passed, MAX_PAST), min(past.failed, MAX_PAST)) if past is not None else (0, 0)
    for hypothesis in HYPOTHESES:
        weight = prior[hypothesis.cause] * hypothesis.weight
        rate = hypothesis.candidate_here if hypothesis.cause is Cause.FLAKE else _RARE
        weight *= (1 - rate) ** passed * rate**failed
        for one in seen:
            chance = hypothesis.chance(one.rerun)
            weight *= chance if one.failed else 1 - chance
        weights.append(weight)
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _by_cause(weights: Sequence[float]) -> dict[Cause, float]:
    chances = dict.fromkeys(Cause, 0.0)
    for hypothesis, weight in zip(HYPOTHESES, weights, strict=True):
        chances[hypothesis.cause] += weight
    return chances


def _gain(weights: Sequence[float], rerun: Rerun) -> float:
    """Bits about the cause that a rerun is expected to tell."""
    failing = [weight * hypothesis.chance(rerun) for hypothesis, weight in zip(HYPOTHESES, weights, strict=True)]
    passing = [weight - failed for weight, failed in zip(weights, failing, strict=True)]
    expected = 0.0
    for outcome in (failing, passing):
        total = math.fsum(outcome)
        if total > 0:
            expected += total * _entropy(_by_cause([weight / total for weight in outcome]).values())
    return _entropy(_by_cause(weights).values()) - expected


def _entropy(chances: Iterable[float]) -> float:
    return -math.fsum(chance * math.log2(chance) for chance in chances if chance > 0)


def _words(seen: Sequence[Seen]) -> list[str]:
    """Each kind of rerun once, with its counts."""
    told = []
    for rerun in RERUNS:
        outcomes = [one.failed for one in seen if one.rerun == rerun]
        if outcomes:
            where = "on another worker" if rerun.elsewhere else "on the same worker"
            code = "the base" if rerun.on_base else "the candidate"
            told.append(f"{code} {where} failed {sum(outcomes)} of {len(outcomes)}")
    return told
