"""How a worker's machine is."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.rules.health import HealthStatus, judge_health

THRESHOLDS = {"cpu_percent": 90.0, "disk_percent": 80.0}


@pytest.mark.parametrize(
    ("metrics", "status", "reason"),
    [
        ({}, HealthStatus.HEALTHY, ""),
        ({"cpu_percent": 89.9, "disk_percent": 10, "load": 99}, HealthStatus.HEALTHY, ""),
        ({"cpu_percent": 90}, HealthStatus.WARNING, "cpu_percent is 90, above 90"),
        ({"cpu_percent": 95}, HealthStatus.CRITICAL, "cpu_percent is 95, above 90"),
        (
            {"cpu_percent": 91, "disk_percent": 90},
            HealthStatus.CRITICAL,
            "cpu_percent is 91, above 90; disk_percent is 90, above 80",
        ),
        (
            {"cpu_percent": 99, "disk_percent": 81},
            HealthStatus.CRITICAL,
            "cpu_percent is 99, above 90; disk_percent is 81, above 80",
        ),
    ],
)
def test_table(metrics, status, reason):
    """A warning from the threshold on, critical from half of what is left above it; the worst counts."""
    health = judge_health(metrics, THRESHOLDS, 7.0)
    assert (health.status, health.reason, health.at, health.metrics) == (status, reason, 7.0, metrics)
