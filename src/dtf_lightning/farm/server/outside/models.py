"""What workers over REST say, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dtf_lightning.farm.rules.attempts import TAIL_BYTES, AttemptOutcome, OutcomeKind
from dtf_lightning.farm.server.models import StrictModel

NAME = 200
"""Characters of a name."""
MAX_REASON = 1000
MAX_URL = 1000
FAR = 253402300799.0
"""The last second of the year 9999."""

Amounts = dict[str, float]


class Registration(StrictModel):
    """A worker says what it offers."""

    worker_id: str = Field(min_length=1, max_length=NAME)
    hardware_id: str = Field(default="", max_length=NAME)
    """Name of its machine."""
    identity: str = Field(default="", max_length=NAME)
    """The same over all starts of this worker: with it a worker that is started anew takes its name over at once."""
    devices: Amounts = Field(default_factory=lambda: {"cpu": 1.0}, max_length=100)
    labels: tuple[str, ...] = Field(default=(), max_length=100)

    @field_validator("devices")
    @classmethod
    def _positive(cls, devices: Amounts) -> Amounts:
        for resource, amount in devices.items():
            if not (0 <= amount < 1e12):
                raise ValueError(f"the amount of {resource!r} must be a number from 0 up, got {amount!r}")
        return devices


class HealthReport(StrictModel):
    """A worker says that it is there, how it is, and what it runs."""

    worker_id: str = Field(min_length=1, max_length=NAME)
    session: str = Field(max_length=NAME)
    """As the answer to its registration says."""
    performance_metrics: Amounts = Field(default_factory=dict, max_length=100)
    running: dict[str, int] = Field(default_factory=dict, max_length=10_000)
    """Task -> the attempt's revision."""
    draining: bool = False
    """It wants nothing more."""


class AttemptEnd(StrictModel):
    """A worker says how an attempt has ended."""

    worker_id: str = Field(min_length=1, max_length=NAME)
    revision: int = Field(ge=1, lt=2**63)
    """The attempt's identity, as the worker was told it."""
    exit_code: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    started: float = Field(default=0.0, ge=0, le=FAR)
    ended: float = Field(default=0.0, ge=0, le=FAR)
    """Seconds since the epoch; 0: now."""
    metrics: Amounts = Field(default_factory=dict, max_length=1000)
    counts: dict[str, int] = Field(default_factory=dict, max_length=1000)
    artifacts: dict[str, str] = Field(default_factory=dict, max_length=1000)
    """Name -> URL."""
    log_bytes: int = Field(default=0, ge=0, lt=2**63)
    """Length of the output that was sent to `POST /api/tasks/{task_id}/logs`."""
    tail: str = ""
    """The last of its output."""
    cpu_seconds: float = Field(default=0.0, ge=0, le=1e12)
    peak_memory: int = Field(default=0, ge=0, lt=2**63)

    def outcome(self, kind: OutcomeKind, reason: str, now: float) -> AttemptOutcome:
        """Return what is recorded. `now`: seconds since the epoch."""
        ended = self.ended or now
        return AttemptOutcome(
            kind=kind,
            reason=reason,
            exit_code=self.exit_code,
            started=min(self.started or ended, ended),
            ended=ended,
            cpu_seconds=self.cpu_seconds,
            peak_memory=self.peak_memory,
            metrics=self.metrics,
            counts=self.counts,
            artifacts=self.artifacts,
            log_bytes=self.log_bytes,
            tail=self.tail[-TAIL_BYTES:],
        )


class Completion(AttemptEnd):
    """An attempt has completed."""

    exit_code: Literal[0] | None = 0


class Failure(AttemptEnd):
    """An attempt has not completed."""

    error: str = Field(default="the worker says that it has failed", max_length=MAX_REASON)
    kind: Literal["failed", "timeout", "lost"] = "failed"
    """`lost`: the worker could not run it, which counts no try against the task."""
