"""How far a job is, by how its subtasks are. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from dtf_lightning.farm.orchestrate.splitting import Share

BEGUN = ("assigned", "running")
"""Of a subtask that is not done: it has a worker."""
COMPLETED, CANCELLED = "completed", "cancelled"
ENDS = (COMPLETED, "failed", CANCELLED, "skipped", "expired")


class JobStatus(Enum):
    """What a job is at."""

    PENDING = "pending"
    """No subtask has begun."""
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    """All of its subtasks that count have."""
    FAILED = "failed"
    """At least one of them has not; what the others gave is there, as a partial result."""
    CANCELLED = "cancelled"


def percentage(parts: Iterable[tuple[Share, str]]) -> int:
    """Return how much has ended, in whole percent, rounded down: 100 is all of it, by what the shares weigh.

    Args:
        parts: the shares that count, with what their subtasks are at.
    """
    whole = done = 0
    for share, status in parts:
        whole += share.weight
        done += share.weight if status in ENDS else 0
    return 100 * done // whole if whole else 0


def status_of(statuses: Iterable[str], *, cancelled: bool, begun: bool = False) -> JobStatus:
    """Return what a job is at.

    Args:
        statuses: of the subtasks that count.
        cancelled: whether somebody has ended it as a whole.
        begun: whether others, that do not count, have begun.
    """
    told = list(statuses)
    if any(status not in ENDS for status in told):
        begun = begun or any(status in (*BEGUN, *ENDS) for status in told)
        return JobStatus.IN_PROGRESS if begun else JobStatus.PENDING
    if cancelled:
        return JobStatus.CANCELLED
    return JobStatus.COMPLETED if all(status == COMPLETED for status in told) else JobStatus.FAILED
