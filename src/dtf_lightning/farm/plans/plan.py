"""What a plan is, once it is read. Its text is read by `reading.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.submissions.schedules import Overlap

MAX_TASKS = 10_000
"""Of one plan, its matrices multiplied out."""
MAX_LINKS = 200_000
"""Pairs of tasks of which one comes after the other, in one plan: each is written into the farm's record."""

Cell = Mapping[str, str]
"""One instance of a matrix: axis -> value, in the order of the axes."""


@dataclass(frozen=True, kw_only=True)
class PlanTask:
    """One task that is to be submitted: an entry of `tasks`, or one instance of its matrix."""

    entry: str
    """The key under `tasks`."""
    name: str
    """Unique in the plan."""
    command: tuple[str, ...] = ()
    orchestrate: Mapping[str, Any] | None = None
    """Of a job that is split over devices: how, by the names of `plans.orchestrating`; `None`: it is one task."""
    call: str = ""
    """Of a task that is a call: `package.module:function`."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[Need, ...] = ()
    gang: int = 1
    """Workers that run it together."""
    array: int = 0
    """Instances of it, of a training its parts; 0: it is no array."""
    training: int = 0
    """Parts that a training keeps; 0: it is none."""
    suspend_for: int | None = None
    """Priority from which on work gets these, too."""
    priority: int = 0
    timeout: float | None = None
    """Seconds of one attempt."""
    expires: float | None = None
    """Seconds after its submission, by which it must have started."""
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    """Ends after which it is tried again; none: any of its own fault."""
    retry_exit_codes: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Place in its folder -> reference (`rules.inputs`), or the path of a file or folder, relative to where the plan was
    started."""
    secrets: tuple[str, ...] = ()
    """Names of secrets."""
    permissions: tuple[str, ...] = ()
    """What its command may do with the farm."""
    artifacts: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)
    key: str = ""
    """Of an idempotent submission; "": none."""
    reuse: float = 0.0
    """How old, in seconds, a result may be that is taken in the place of running it; 0: it runs."""
    folder: str = ""
    """Where it runs, relative to where the plan was started."""


@dataclass(frozen=True, kw_only=True)
class PlanSchedule:
    """When a plan is submitted."""

    cron: str
    """Minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    overlap: Overlap = Overlap.SKIP


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Tasks that are submitted together."""

    name: str
    project: str
    key: str = ""
    """Of an idempotent submission of the whole plan; "": none."""
    schedule: PlanSchedule | None = None
    """When it is submitted; `None`: once, now."""
    tasks: tuple[PlanTask, ...]
    """In the order of the file; of a matrix in the order of its product."""
    after: Mapping[str, tuple[str, ...]]
    """Entry -> entries all of whose tasks must have completed, and ids of tasks outside of the plan that must have."""
    after_any: Mapping[str, tuple[str, ...]]
    """Entry -> entries all of whose tasks must have ended, and ids of tasks outside of the plan that must have, however."""
