"""A metric's series as a drawing: values over runs in a logarithmic scale, the band of noise, and steps. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtf_lightning.farm.results.tests.course import Told

WIDTH, HEIGHT, LEFT, RIGHT, EDGE = 760, 240, 84, 12, 16
"""Of the whole drawing, of its margins, in pixels."""
FEWEST = 2
"""Values without which nothing is drawn."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run."""

    x: float
    y: float
    value: float
    task: str


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A value beside its height."""

    y: float
    text: str


@dataclass(frozen=True, kw_only=True)
class StepLine:
    """Where a step was."""

    x: float
    text: str
    worse: bool


@dataclass(frozen=True, kw_only=True)
class SeriesDrawing:
    """Places in pixels, from the upper left corner."""

    width: int
    height: int
    points: tuple[Point, ...]
    ticks: tuple[Tick, ...]
    steps: tuple[StepLine, ...]
    band: tuple[float, float] | None
    """Upper and lower edge of what is noise at the present level."""
    unit: str


def draw_series(told: Told) -> SeriesDrawing | None:
    """Return the drawing; `None` where there is nothing to draw: fewer than two values, or one that is not above 0."""
    values = told.values
    if len(values) < FEWEST or not all(math.isfinite(value) and value > 0 for value in values):
        return None
    shown = [
        *values,
        *(edge for edge in (told.low, told.high) if edge is not None and edge > 0 and math.isfinite(edge)),
    ]
    low, high = math.log(min(shown)), math.log(max(shown))
    if high - low < 1e-9:
        low, high = low - 0.01, high + 0.01

    def x_of(place: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * place / (len(values) - 1), 1)

    def y_of(value: float) -> float:
        part = (math.log(value) - low) / (high - low)
        return round(EDGE + (HEIGHT - 2 * EDGE) * (1 - min(max(part, 0.0), 1.0)), 1)

    heights = [math.exp(low + (high - low) * part) for part in (0, 0.25, 0.5, 0.75, 1)]
    band = None
    if told.low is not None and told.high is not None and told.low > 0:
        band = (y_of(told.high), y_of(told.low))
    return SeriesDrawing(
        width=WIDTH,
        height=HEIGHT,
        points=tuple(
            Point(x=x_of(place), y=y_of(value), value=value, task=task)
            for place, (value, task) in enumerate(zip(values, told.tasks, strict=True))
        ),
        ticks=tuple(Tick(y=y_of(value), text=f"{value:.4g} {told.unit}") for value in heights),
        steps=tuple(StepLine(x=x_of(step.run), text=f"{step.percent:+.1f} %", worse=step.worse) for step in told.steps),
        band=band,
        unit=told.unit,
    )
