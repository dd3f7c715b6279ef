"""How a scheduler weighs waiting."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerSettings:
    """Times and numbers of a `ShapeScheduler`.

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
