"""These functions simulate loss curves of several shapes, clean and with spikes and drifts, from (shape, seed)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dtf_lightning.elastic.numerics.divergence_detector import DivergenceDetector, DivergenceSettings

NUM_STEPS = 1000


def noisy(random_: random.Random) -> list[float]:
    """Return a power law with normal noise of 1 to 10 % of the level."""
    noise = random_.uniform(0.01, 0.10)
    return [loss * (1 + random_.gauss(0, noise)) for loss in _power_law(random_)]


def stepwise(random_: random.Random) -> list[float]:
    """Return a curve whose loss drops by 15 to 50 % at each of three drops of the learning rate."""
    noise = random_.uniform(0.01, 0.05)
    drops = sorted(random_.sample(range(150, NUM_STEPS - 100), 3))
    level, factor, losses = 1.0, 1.0, []
    for step, loss in enumerate(_power_law(random_)):
        if step in drops:
            factor *= random_.uniform(0.5, 0.85)
        level += 0.2 * (factor - level)
        losses.append(loss * level * (1 + random_.gauss(0, noise)))
    return losses


def warm_restarts(random_: random.Random) -> list[float]:
    """Return a curve of cosine cycles: each restart of the learning rate lifts the loss by 5 to 35 % for a while."""
    noise = random_.uniform(0.01, 0.05)
    lift, period = random_.uniform(0.05, 0.35), random_.randint(100, 250)
    losses = []
    for step, loss in enumerate(_power_law(random_)):
        rate = 0.5 * (1 + math.cos(math.pi * (step % period) / period))
        bump = lift * rate * min(1.0, (step % period) / 10) if step >= period else 0.0
        losses.append(loss * (1 + bump) * (1 + random_.gauss(0, noise)))
    return losses


def small_batches(random_: random.Random) -> list[float]:
    """Return a curve with log-normal noise (sigma 0.2 to 0.5), where one batch in 50 has 2 to 5 times the loss."""
    sigma = random_.uniform(0.2, 0.5)
    return [
        loss * random_.lognormvariate(0, sigma) * (random_.uniform(2, 5) if random_.random() < 0.02 else 1)
        for loss in _power_law(random_)
    ]


def nearly_zero(random_: random.Random) -> list[float]:
    """Return the curve of a model that fits its data: the loss halves every 40 to 100 steps, log-normal noise."""
    half = random_.uniform(40, 100)
    return [2.3 * 0.5 ** (step / half) * random_.lognormvariate(0, 0.3) + 1e-4 for step in range(NUM_STEPS)]


def _power_law(random_: random.Random) -> list[float]:
    """Return a power law without noise, from about 3 to 5 down to a floor of 0.5 to 2."""
    start, floor, power = random_.uniform(2.5, 3.5), random_.uniform(0.5, 2.0), random_.uniform(0.3, 0.7)
    return [floor + start / (1 + step / 5) ** power for step in range(NUM_STEPS)]


SHAPES: dict[str, Callable[[random.Random], list[float]]] = {
    "noisy": noisy,
    "stepwise LR drops": stepwise,
    "warm restarts": warm_restarts,
    "small batches": small_batches,
    "nearly zero": nearly_zero,
}


def clean(shape: str, seed: int) -> list[float]:
    """Return one clean curve: the loss of each step."""
    return SHAPES[shape](random.Random(f"{shape} {seed}"))


def scale_at(losses: list[float], step: int, settings: DivergenceSettings) -> tuple[float, float]:
    """Return level and scale of the detector before `step`."""
    detector = DivergenceDetector(settings)
    for earlier in range(step):
        detector.observe(losses[earlier], earlier)
    state = detector.state_dict()
    return state["level"], state["scale"]


@dataclass(frozen=True)
class Injected:
    """Hold a curve with a spike or a drift."""

    losses: list[float]
    due: int
    """Step at which the spike or drift has its documented size; the delay of detection counts from here."""


def with_spike(shape: str, seed: int, size: float, settings: DivergenceSettings) -> Injected:
    """Return a curve whose loss is `size` scales higher from a random step on, with the curve's own noise."""
    losses = clean(shape, seed)
    at = random.Random(f"spike {seed}").randrange(200, 800)
    _, scale = scale_at(losses, at, settings)
    return Injected([loss + size * scale * (step >= at) for step, loss in enumerate(losses)], at)


def with_drift(shape: str, seed: int, size: float, ramp: int, settings: DivergenceSettings) -> Injected:
    """Return a curve whose loss rises from a random step on, by `size` scales in every `ramp` steps."""
    losses = clean(shape, seed)
    at = random.Random(f"drift {seed}").randrange(200, 700)
    _, scale = scale_at(losses, at, settings)
    rise = [max(0.0, size * scale * (step - at) / ramp) for step in range(len(losses))]
    return Injected([loss + more for loss, more in zip(losses, rise, strict=True)], at + ramp)


def alarm(losses: list[float], settings: DivergenceSettings) -> int | None:
    """Return the step at which the detector reports a divergence; `None` if it never does."""
    detector = DivergenceDetector(settings)
    return next((step for step, loss in enumerate(losses) if detector.observe(loss, step)), None)


SPIKE_SIZE = 12.0
"""Documented size of a spike, in scales."""
DRIFT_SIZE = 10.0
"""Documented size of a drift, in scales, reached within `DRIFT_RAMPS` steps."""
DRIFT_RAMPS = (20, 50, 100)
WITHIN = 5
"""Largest number of observations from the documented size to the decision."""


@dataclass(frozen=True)
class Row:
    """Hold the results for one shape of curve."""

    shape: str
    num_curves: int
    false_alarms: int
    spikes: float
    """Share of the spikes that were found within `WITHIN` observations."""
    drifts: float
    """Share of the drifts that were found within `WITHIN` observations."""


def table(num_curves: int, settings: DivergenceSettings | None = None) -> Iterator[Row]:
    """Yield false alarms and detection for each shape, from `num_curves` curves of it."""
    settings = settings or DivergenceSettings()
    for shape in SHAPES:
        false_alarms = sum(alarm(clean(shape, seed), settings) is not None for seed in range(num_curves))
        spikes = [_found(with_spike(shape, seed, SPIKE_SIZE, settings), settings) for seed in range(num_curves)]
        drifts = [
            _found(with_drift(shape, seed, DRIFT_SIZE, DRIFT_RAMPS[seed % len(DRIFT_RAMPS)], settings), settings)
            for seed in range(num_curves)
        ]
        yield Row(shape, num_curves, false_alarms, sum(spikes) / num_curves, sum(drifts) / num_curves)


def _found(injected: Injected, settings: DivergenceSettings) -> bool:
    at = alarm(injected.losses, settings)
    return at is not None and at < injected.due + WITHIN
