"""The value of a schedule: small and immutable, as those of `record/values.py`. Times are seconds since the epoch (UTC)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from dtf_lightning.farm.rules.submissions.schedules import Overlap

KEPT_RUNS = 20
"""Of a schedule's runs, and of the times at which it did not run, so many of the latest."""


class RunState(Enum):
    """What became of a time that was decided on."""

    SUBMITTING = "submitting"
    """The plan's tasks are being submitted."""
    SUBMITTED = "submitted"
    """All of them are."""
    SKIPPED = "skipped"
    """Nothing was submitted, because the last run went on."""
    REFUSED = "refused"
    """The farm did not take the plan."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleRun:
    """A time that was decided on."""

    plan: str = ""
    """The id of the plan that is submitted; "" for one that is not."""
    time: float
    """For which."""
    decided: float
    """When that was decided; the plan's id carries this time."""
    state: RunState
    missed: int = 0
    """Times before it at which nobody decided."""
    by_hand: bool = False
    """Somebody has asked for it."""
    reason: str = ""
    """Why it was not submitted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleRecord:
    """A plan that is submitted at certain times."""

    plan: str
    """Its text."""
    cron: str
    timezone: str = "UTC"
    overlap: Overlap = Overlap.SKIP
    project: str = "default"
    source: str = ""
    """Digest of the archive that each task unpacks; "": none."""
    folder: str = ""
    """Where in it the plan was written."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Path that the plan names -> reference by which the farm has it."""
    digests: tuple[str, ...] = ()
    """Of all that lies in the farm's files for it, the source among them: they stay as long as the schedule."""
    registered: float
    decided: float
    """Up to this moment it is decided what was submitted."""
    paused: bool = False
    runs: tuple[ScheduleRun, ...] = ()
    """The latest, in the order in which they were decided."""

    def with_run(self, run: ScheduleRun) -> ScheduleRecord:
        """Return the schedule after a run was decided on. One that somebody has asked for decides no time."""
        decided = self.decided if run.by_hand else run.time
        return replace(self, decided=decided, runs=(*self.runs, run)[-KEPT_RUNS:])

    def with_state(self, plan: str, state: RunState, reason: str = "") -> ScheduleRecord:
        """Return the schedule after a run's submission has ended."""
        runs = tuple(replace(run, state=state, reason=reason) if run.plan == plan else run for run in self.runs)
        return replace(self, runs=runs)
