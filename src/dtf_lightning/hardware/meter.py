"""What this machine is at now: usage of its cores, memory, disk and network. For coordinators and farm workers."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from dtf_lightning.clock import Clock

MEGABYTE = 1e6


class Meter:
    """Measures since the last measurement. Call it from one thread.

    Args:
        folder: whose disk is looked at.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._last: tuple[float, float] | None = None
        """When, and how many bytes had gone over the network by then."""
        psutil.cpu_percent(None)  # the first answer is of no time at all

    def measure(self) -> dict[str, float]:
        """Return the numbers; what this system does not tell is left out."""
        load = os.getloadavg()[0]
        found = {
            "cpu_usage": psutil.cpu_percent(None),
            "memory_usage": psutil.virtual_memory().percent,
            "load_average": round(load, 2),
            "load_per_core": round(load / (psutil.cpu_count() or 1), 2),
        }
        if self._folder.exists():
            found["disk_usage"] = psutil.disk_usage(str(self._folder)).percent
        if (counters := psutil.net_io_counters()) is not None:
            now, total = self._clock.monotonic(), float(counters.bytes_sent + counters.bytes_recv)
            if self._last is not None and now > self._last[0]:
                found["network_io"] = round(max(total - self._last[1], 0.0) / MEGABYTE / (now - self._last[0]), 3)
            self._last = now, total
        return found
