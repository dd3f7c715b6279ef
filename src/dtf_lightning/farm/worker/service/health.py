"""`HealthReader`: how busy this machine is, by what Linux tells in `/proc`. What cannot be read is left out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from dtf_lightning.farm.rules.health import WorkerHealth, judge_health
from dtf_lightning.farm.worker.service.progress import reported

LOOPBACK = "lo"


class HealthReader:
    """Not thread-safe. Figures of use are those since the last reading; the first one has those since the machine's start.

    Args:
        folder: on the disk whose room counts.
        thresholds: name of a figure -> per cent above which the machine is in want.
        running: returns the tasks that run, and the folders of what they report.
        proc: where the kernel tells.
    """

    def __init__(
        self,
        folder: Path,
        thresholds: Mapping[str, float],
        *,
        running: Callable[[], Iterable[tuple[str, Path]]] = tuple,
        proc: Path = Path("/proc"),
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._thresholds, self._proc = folder, dict(thresholds), proc
        self._running = running
        self._monotonic, self._wall = monotonic, wall
        self._cpu = (0.0, 0.0)
        """Jiffies of work, and of all."""
        self._network: tuple[float, float, float] | None = None
        """When, bytes received, bytes sent."""

    def read(self) -> WorkerHealth:
        """Return how it is now. May wait for a disk that does not answer."""
        metrics: dict[str, float] = {}
        for part in (self._read_cpu, self._read_memory, self._read_disk, self._read_network, self._read_load):
            with contextlib.suppress(OSError, ValueError, IndexError, KeyError, ZeroDivisionError):
                metrics |= part()
        return replace(judge_health(metrics, self._thresholds, self._wall()), tasks=reported(self._running()))

    def _read_cpu(self) -> dict[str, float]:
        # user nice system idle iowait irq softirq steal; guests are in user already (proc_stat(5)).
        ticks = [float(text) for text in self._lines("stat")[0].split()[1:9]]
        everything, busy = sum(ticks), sum(ticks) - ticks[3] - ticks[4]
        before, self._cpu = self._cpu, (busy, everything)
        return {"cpu_percent": 100.0 * (busy - before[0]) / (everything - before[1])}

    def _read_memory(self) -> dict[str, float]:
        told = {line.split(":")[0]: float(line.split()[1]) for line in self._lines("meminfo")}
        return {"memory_percent": 100.0 * (1.0 - told["MemAvailable"] / told["MemTotal"])}

    def _read_disk(self) -> dict[str, float]:
        disk = os.statvfs(self._folder)
        return {"disk_percent": 100.0 * (1.0 - disk.f_bavail / disk.f_blocks)}

    def _read_network(self) -> dict[str, float]:
        received = sent = 0.0
        for line in self._lines("net/dev")[2:]:
            name, _, told = line.partition(":")
            if name.strip() != LOOPBACK:
                fields = told.split()
                received, sent = received + float(fields[0]), sent + float(fields[8])
        now, before = self._monotonic(), self._network
        self._network = now, received, sent
        if before is None:
            return {}
        seconds = now - before[0]
        return {"received_bytes": (received - before[1]) / seconds, "sent_bytes": (sent - before[2]) / seconds}

    def _read_load(self) -> dict[str, float]:
        return {"load": float(self._lines("loadavg")[0].split()[0])}

    def _lines(self, name: str) -> list[str]:
        return (self._proc / name).read_text().splitlines()
