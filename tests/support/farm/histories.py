"""`histories`: a generator of benchmark histories, named so that docs may refer to it: "the generator of histories".

It has the percentiles of noise of two public benchmark histories (one machine of a numeric library; the CI of a language
engine), noise that is correlated with its neighbours and for some series heavy-tailed, single spikes, and steps from 3 to
50 %. A step is **labelled** as a person would label it by hindsight: at least 3 %, and at least 3 sigma. Points near any
step, labelled or not, are not clean.

Seeds that are even were looked at while the rules were made; odd ones are held out. Nothing may be tuned on these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIGMAS = {
    "one machine": (0.0022, 0.0103, 0.0257),
    "continuous integration": (0.0026, 0.028, 0.088),
}
"""Standard deviations of the series' noise at the 10th, 50th and 90th percentile."""
TUNED, HELD_OUT = range(0, 20, 2), range(1, 20, 2)
AFTER = 12
"""Points after a step in which an alarm belongs to it."""
NEAR = 20
"""Points around a step that are not clean."""


@dataclass(frozen=True)
class Step:
    onset: int
    log_ratio: float
    labelled: bool


@dataclass(frozen=True)
class History:
    costs: np.ndarray
    """Logarithms, shape (points,)."""
    sigma: float
    steps: tuple[Step, ...]

    @property
    def clean(self) -> np.ndarray:
        """Which points are far from every step; shape (points,), bool."""
        clean = np.ones(len(self.costs), dtype=bool)
        for step in self.steps:
            clean[max(step.onset - 1, 0) : step.onset + NEAR] = False
        return clean


def draw_sigma(random: np.random.Generator, kind: str) -> float:
    low, middle, high = np.log(SIGMAS[kind])
    return float(np.exp(np.interp(random.random(), [0, 0.1, 0.5, 0.9, 1], [low - 0.5, low, middle, high, high + 0.3])))


def noise(random: np.random.Generator, num_points: int, sigma: float, *, spikes: float = 0.01) -> np.ndarray:
    """Autocorrelated by 0 to .68; one series of five has tails of a t distribution; spikes of 10 % and more, mostly up."""
    correlation = random.uniform(0, 0.68)
    shocks = random.standard_t(4, num_points) / np.sqrt(2) if random.random() < 0.2 else random.normal(size=num_points)
    values = np.empty(num_points)
    last = random.normal()
    for point, shock in enumerate(shocks):
        last = values[point] = correlation * last + np.sqrt(1 - correlation**2) * shock
    values *= sigma
    spiked = random.random(num_points) < spikes
    values[spiked] += (0.1 + random.exponential(0.2, spiked.sum())) * np.where(random.random(spiked.sum()) < 0.9, 1, -1)
    return values


def history(random: np.random.Generator, kind: str, num_points: int = 370) -> History:
    sigma = draw_sigma(random, kind)
    costs = noise(random, num_points, sigma)
    steps = []
    onset = int(random.exponential(150)) + 15
    while onset < num_points - AFTER:
        ratio = float(np.exp(random.uniform(np.log(0.03), np.log(0.5)))) * (1 if random.random() < 0.5 else -1)
        costs[onset:] += ratio
        steps.append(Step(onset, ratio, abs(ratio) >= max(0.03, 3 * sigma)))
        onset += int(random.exponential(150)) + 15
    return History(costs + random.normal(), sigma, tuple(steps))


def histories(seed: int, kind: str, number: int = 30, num_points: int = 370) -> list[History]:
    random = np.random.default_rng([seed, list(SIGMAS).index(kind)])
    return [history(random, kind, num_points) for _ in range(number)]


@dataclass(frozen=True)
class Score:
    """How alarms, (point, sign) of each history, fit what was done to it."""

    recall: float
    false_per_1000: float
    median_delay: float
    num_steps: int
    num_clean: int


def score(drawn: list[History], alarms: list[list[tuple[int, int]]]) -> Score:
    found = steps = false = clean = 0
    delays = []
    for one, told in zip(drawn, alarms, strict=True):
        is_clean = one.clean
        clean += int(is_clean.sum())
        false += sum(bool(is_clean[point]) for point, _ in told)
        for step in one.steps:
            if step.labelled:
                steps += 1
                sign = 1 if step.log_ratio > 0 else -1
                hits = [point - step.onset for point, way in told if way == sign and 0 <= point - step.onset < AFTER]
                found += bool(hits)
                delays += hits[:1]
    return Score(found / steps, 1000 * false / clean, float(np.median(delays)), steps, clean)
