"""How a worker's machine is, from a few figures. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class HealthStatus(StrEnum):
    """How something is. In the order of how bad it is."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerHealth:
    """A worker's report of its machine."""

    at: float
    """Seconds since the epoch by the worker's clock."""
    status: HealthStatus
    reason: str = ""
    """What is wrong; "" if nothing is."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """`cpu_percent`, `memory_percent`, `disk_percent`, `load` (runnable processes, over a minute), `received_bytes` and
    `sent_bytes` (a second), as far as the machine tells them."""
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Parts of trainings that run there -> what they have reported of their run so far."""


def judge_health(metrics: Mapping[str, float], thresholds: Mapping[str, float], at: float) -> WorkerHealth:
    """Return the report: a warning from a threshold on, critical from half of what is left above it.

    Args:
        metrics: name -> figure.
        thresholds: name -> per cent.
        at: seconds since the epoch.
    """
    above = []
    status = HealthStatus.HEALTHY
    for name, threshold in thresholds.items():
        value = metrics.get(name)
        if value is None or value < threshold:
            continue
        critical = value >= (threshold + 100.0) / 2
        above.append(f"{name} is {value:.0f}, above {threshold:g}")
        if critical or status is HealthStatus.CRITICAL:
            status = HealthStatus.CRITICAL
        else:
            status = HealthStatus.WARNING
    return WorkerHealth(at=at, status=status, reason="; ".join(above), metrics=dict(metrics))
