"""The value of a pool that the farm scales."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOrder:
    """A worker that was asked for and has not come yet."""

    name: str
    at: float
    """When the leader decided it."""
    given: bool = False
    """Whether the provider has said that it is on its way; else a leader asks for it again, under the same name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingStep:
    """What was done."""

    at: float
    started: int = 0
    drained: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolRecord:
    """A pool. Times are seconds since the epoch; 0: never."""

    orders: tuple[WorkerOrder, ...] = ()
    members: tuple[str, ...] = ()
    """Workers that have come, as far as they are there."""
    ending: tuple[str, ...] = ()
    """Of them, those that the provider is to end once nothing runs there."""
    started: float = 0.0
    drained: float = 0.0
    failures: int = 0
    """Of the provider, one after the other."""
    retry: float = 0.0
    """When it may be asked again."""
    problem: str = ""
    """What failed last; "": nothing since."""
    spent: float = 0.0
    """Since `day` began."""
    day: float = 0.0
    counted: float = 0.0
    """Until when `spent` is counted."""
    steps: tuple[ScalingStep, ...] = ()
    """The latest, the oldest first."""
