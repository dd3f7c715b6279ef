"""The value of a job that is split over devices: small and immutable. Times are seconds since the epoch (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtf_lightning.farm.orchestrate.splitting import Share, Strategy


@dataclass(frozen=True, kw_only=True, slots=True)
class OrchestrationRecord:
    """A job that is split over devices. The ids of its subtasks are made from its own and the keys of its shares."""

    asked: str
    """What was asked for, as JSON."""
    project: str = "default"
    plan: str = ""
    """The plan with which it came; "": it came by itself, and its id is the plan of its subtasks."""
    name: str = ""
    strategy: Strategy
    reason: str = ""
    """Why it was split so."""
    shares: tuple[Share, ...]
    priority: int = 0
    timeout: float | None = None
    """Seconds of one attempt at a subtask."""
    retries: int = 0
    split_anew: bool = False
    """Whether a share whose subtask has failed is cut into smaller ones, for other workers."""
    submitted: float
    ends: Mapping[str, str] = field(default_factory=dict)
    """Key of a share -> how its subtask ended, as far as a leader has noted it: whoever starts need not read what is done."""
    cancelled: float = 0.0
    """When somebody ended it as a whole; 0: nobody has."""
    cancel_reason: str = ""
    ended: float = 0.0
    status: str = ""
    """Once it has ended."""
    error: str = ""
    """Why it failed, once it has ended."""
