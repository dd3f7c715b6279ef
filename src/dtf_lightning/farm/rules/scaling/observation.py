"""What is seen of a pool of workers that the farm starts and drains by itself. Pure values; all times are seconds.

A **worker's worth** is what one worker of the pool can do at once: a task that takes half of its cores is half of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dtf_lightning.farm.rules.needs import Need, asked, lacking, offered


@dataclass(frozen=True, kw_only=True)
class PoolLimits:
    """Between what a pool grows and shrinks, and how readily, at one moment."""

    minimum: int = 0
    maximum: int = 1
    serve_within: float = 300.0
    """What waits should be served within this, if its expected durations are right."""
    patience: float = 10.0
    """For which a task has to wait before a worker is started for it: what is there may soon have room."""
    idle: float = 300.0
    """For which a worker has to be idle before it is drained."""
    cool_down: float = 120.0
    """After workers were started none is drained for so long, and the other way round."""
    busy_share: float = 1.0
    """Utilisation above which one more is started though nothing waits; 1: never."""
    cost: float = 0.0
    """Of one worker for an hour."""
    budget: float | None = None
    """Of a day (UTC)."""
    in_order: bool = False
    """Whether only the last of the workers can be ended, then the one before it."""

    @property
    def seconds_cost(self) -> float:
        """Of one worker for a second."""
        return self.cost / 3600.0


@dataclass(frozen=True, kw_only=True)
class PoolWorker:
    """A worker of a pool that is there."""

    name: str
    used: float = 0.0
    """How much of it is taken, 0 to 1."""
    busy: bool = False
    """Whether it has a task."""
    idle: float = 0.0
    """Since when it has had none."""
    leaving: bool = False
    """It is drained or cordoned: it takes nothing more."""


@dataclass(frozen=True, kw_only=True)
class SeenPool:
    """A pool."""

    limits: PoolLimits
    workers: tuple[PoolWorker, ...] = ()
    """In the order in which they can be ended where that matters, the last one first to go."""
    starting: int = 0
    """Were asked for, and have not come yet."""
    beside: float = 0.0
    """Workers of nobody's pool that could do what waits, in worker's worths."""
    waiting: int = 0
    """Tasks."""
    backlog: float = 0.0
    """What they will take: worker's worths times seconds."""
    width: float = 0.0
    """What they would take at once: worker's worths."""
    widest: float = 0.0
    """What one of them takes at once: more than 1 for a gang."""
    oldest: float = 0.0
    """For how long the oldest has waited."""
    since_start: float = math.inf
    since_drain: float = math.inf
    retry_in: float = 0.0
    """After a failure of the provider: until it is asked again."""
    problem: str = ""
    """What failed last, while that holds."""
    spent: float = 0.0
    """Of the budget, today."""

    @property
    def utilisation(self) -> float:
        """How much of the workers that take tasks is taken, 0 to 1; 0 where there are none."""
        here = [one.used for one in self.workers if not one.leaving]
        return sum(here) / len(here) if here else 0.0


def share_of(need: Need, devices: dict[str, float], labels: tuple[str, ...]) -> float | None:
    """Return how much of one worker a task takes, as a part that packs; `None`: it can never run there.

    Of 3 cores a task of 2 takes a whole worker: no second one fits beside it.
    """
    if lacking(need, devices, labels):
        return None
    if need.exclusive:
        return 1.0
    fitting = [
        offered(devices.get(resource, 0.0)) // wanted
        for resource, amount in need.amounts.items()
        if (wanted := asked(amount))
    ]
    return 1.0 / min(fitting) if fitting else 0.001
