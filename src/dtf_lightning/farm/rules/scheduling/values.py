"""What the scheduler is told, and what it answers: small and immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtf_lightning.farm.rules.needs import Need


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadyTask:
    """A task that may start: nothing that it depends on is missing."""

    task: str
    project: str = "default"
    """Whose share it counts against."""
    plan: str = ""
    """With which tasks it was submitted; "": alone. In a plan the longest expected task goes first."""
    priority: int = 0
    """One more is worth `SchedulerSettings.age` seconds of waiting."""
    submitted: float = 0.0
    """Seconds since the epoch."""
    sequence: int = 0
    """Order among tasks that are alike in all else."""
    needs: tuple[Need, ...] = ()
    """Alternatives, the preferred one first; none means one cpu."""
    gang: int = 1
    """Workers that start it together; each gives the amounts of the chosen alternative."""
    expected: float | None = None
    """Seconds that it runs on a worker of speed 1, from history; `None`: unknown."""
    excluded: tuple[str, ...] = ()
    """Workers that it should avoid; where no others could ever run it, they count as any."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Licence -> how many of it this task holds while it runs."""
    near: tuple[str, ...] = ()
    """Digests of inputs that it would like to find in a worker's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerOffer:
    """What a farm worker has and whether it takes new tasks."""

    worker: str
    devices: Mapping[str, float] = field(default_factory=dict)
    """Resource -> how much of it; memory in MiB."""
    labels: tuple[str, ...] = ()
    accepting: bool = True
    """`False`: cordoned or draining; what runs there goes on."""
    cost: float = 1.0
    """Of one second, in any unit."""
    speed: float = 1.0
    """How much faster than expected tasks run."""
    cached: frozenset[str] = frozenset()
    """Digests in its cache."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A decision: this task starts on these workers."""

    task: str
    workers: tuple[str, ...]
    alternative: int
    """Index into the task's needs: which of them each worker gives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerSettings:
    """How the scheduler weighs waiting.

    Args:
        age: seconds of waiting that are worth one point of priority.
        reserve_after: seconds for which a queue has been overtaken, in turn, until workers are held free for it.
        starve_after: the same for a queue whose turn it never was, but that later ones were started before.
        overtaken: starts of others that count as being overtaken.
        max_reservations: shapes for which workers are held free at a time.
        look_every: seconds between two looks for queues that were overtaken.
    """

    age: float = 60.0
    reserve_after: float = 15.0
    starve_after: float = 600.0
    overtaken: int = 4
    max_reservations: int = 8
    look_every: float = 1.0

    def __post_init__(self) -> None:
        for name in ("age", "reserve_after", "starve_after", "overtaken", "max_reservations", "look_every"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number that is not negative")
