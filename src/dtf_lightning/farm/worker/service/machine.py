"""How a worker's machine is, now and then: what it says with its heartbeats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.hardware.meter import Meter

INTERVAL = 10.0
"""Seconds between two measurements."""


class MachineReport:
    """Call it as often as you like.

    Args:
        folder: of the worker, whose disk is looked at.
    """

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._meter = Meter(folder, self._clock)
        self._next = 0.0

    def __call__(self) -> Mapping[str, float]:
        """Return the machine's numbers, or nothing where they were told lately."""
        now = self._clock.monotonic()
        if now < self._next:
            return {}
        self._next = now + INTERVAL
        return self._meter.measure()
