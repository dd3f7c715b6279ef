"""Where a task goes if several workers have room: small policies, to which installed packages can add theirs.

A strategy never decides which task is next: that is the turn of projects and ranks. It orders the classes of workers that
could run the task, and, where it wants to, the single workers with room among classes that it holds for equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol


class Looks(Enum):
    """When a strategy wants to compare single workers; else the best fit in the first class with room is taken."""

    IF_NEAR = "only for tasks that name digests of inputs"
    ALWAYS = "for every task"


class Candidate(NamedTuple):
    """A worker with room for a task."""

    worker: str
    alternative: int
    cost: float
    speed: float
    load: float
    """The largest part of one of its resources that is taken, 0 to 1."""
    held: int
    """How many of the task's inputs are in its cache."""
    turn: int
    """The number of the last placement on it; 0: none yet. Placements count up."""


class Strategy(Protocol):
    """A policy. It must be deterministic, and must not keep what it was shown.

    One whose `class_order` goes by the speed says so by an attribute `by_speed` that is true: then it is asked again for a task
    of whose kind history knows how fast it is on which device class.
    """

    @property
    def looks(self) -> Looks:
        """When `worker_order` is asked."""
        ...

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        """Classes of workers with a smaller result come first; among equal ones single workers are compared."""
        ...

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        """The smallest result wins; then the earlier alternative, the lower cost, the better fit."""
        ...


@dataclass(frozen=True)
class FairShare:
    """Alternatives in their order, then the cheapest class; in it a worker that holds the inputs, then the best fit."""

    looks: Looks = Looks.IF_NEAR

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return alternative, cost

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return (-candidate.held,)


@dataclass(frozen=True)
class Cheapest:
    """The cheapest class, even if only a later alternative can run there; of equally cheap ones the fastest."""

    looks: Looks = Looks.IF_NEAR
    by_speed: bool = True

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return cost, alternative, -speed

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return (-candidate.held,)


@dataclass(frozen=True)
class Fastest:
    """The class in which the task is fastest, even if only a later alternative can run there."""

    looks: Looks = Looks.IF_NEAR
    by_speed: bool = True

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return -speed, alternative, cost

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return (-candidate.held,)


@dataclass(frozen=True)
class LeastLoaded:
    """Alternatives in their order, then the worker with the smallest part of it taken."""

    looks: Looks = Looks.ALWAYS

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return (alternative,)

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return candidate.load, -candidate.held


@dataclass(frozen=True)
class Locality:
    """A worker that holds the inputs, even of a dearer class; for tasks that name none as `FairShare`."""

    looks: Looks = Looks.IF_NEAR

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return ()

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return (-candidate.held,)


@dataclass(frozen=True)
class RoundRobin:
    """Alternatives in their order, then the worker that has waited for the most placements."""

    looks: Looks = Looks.ALWAYS

    def class_order(self, alternative: int, cost: float, speed: float) -> tuple[float, ...]:
        return (alternative,)

    def worker_order(self, candidate: Candidate) -> tuple[float, ...]:
        return (candidate.turn,)


STRATEGIES: Mapping[str, Callable[[], Strategy]] = {
    "fair_share": FairShare,
    "least_loaded": LeastLoaded,
    "cheapest": Cheapest,
    "fastest": Fastest,
    "locality": Locality,
    "round_robin": RoundRobin,
}
"""Those of this package, by the names that settings use."""
