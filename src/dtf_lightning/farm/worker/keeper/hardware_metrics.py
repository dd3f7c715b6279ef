"""`hardware_metrics.jsonl`: what an attempt took, as a series: one JSON object a line, and a summary of it.

    {"at": 1.7e9, "cpu_seconds": 12.5, "memory": 1073741824, "processes": 3}      by the keeper
    {"at": 1.7e9, "device": "nvidia/0", "device_memory": 2147483648, "use": 0.93} by the worker, for each device

`at`: seconds since the epoch; `cpu_seconds`: of all its processes so far; `memory`: their resident bytes; `use`: 0 to 1.

Rules that this file guards:
- A line is written at once, so that two processes may write, and what was sampled survives them.
- The file is bounded: after every `THINNING` samples the time between two of them doubles.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dtf_lightning.hardware.nvml import DeviceUse, Nvml

NAME = "hardware_metrics.jsonl"
INTERVAL = 15.0
"""Seconds between two samples, at first."""
THINNING = 400
NVIDIA = "nvidia/"


class Series:
    """When the next sample of one attempt is due, and where it goes.

    Args:
        path: of its file.
        interval: seconds.
        began: when it began, monotonic seconds.
    """

    def __init__(self, path: Path, interval: float, began: float) -> None:
        self._path = path
        self._interval = interval
        self._next = began + interval
        self._count = 0

    def is_due(self, now: float) -> bool:
        """Whether to sample now. `now`: monotonic seconds."""
        return now >= self._next

    def add(self, now: float, *samples: Mapping[str, Any]) -> None:
        """Write samples of this moment. A disk that has no room costs the sample."""
        self._count += 1
        if self._count % THINNING == 0:
            self._interval *= 2
        self._next = now + self._interval
        text = "".join(json.dumps(sample) + "\n" for sample in samples)
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(file, text.encode())
            finally:
                os.close(file)
        except OSError:
            return


def summary(path: Path) -> dict[str, float]:
    """Return peaks and means of a series: `device_memory_peak` (bytes), `device_use_mean` (0 to 1), where there are such."""
    memory: dict[str, list[float]] = {}
    uses: list[float] = []
    for line in _lines(path):
        if isinstance(line.get("device"), str):
            memory.setdefault(str(line["at"]), []).append(float(line["device_memory"]))
            uses.append(float(line["use"]))
    if not uses:
        return {}
    return {"device_memory_peak": max(map(sum, memory.values())), "device_use_mean": sum(uses) / len(uses)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open(errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # a disk without room took only a part of it
                if isinstance(line, dict):
                    yield line
    except OSError:
        return


class DeviceSampler:
    """Samples the devices of attempts, in a thread of its own, where there are any that can be sampled.

    Args:
        interval: seconds.
        devices: all that this worker shares out.
        attempts: returns, for each attempt that runs, its file and its devices.
        open_library: opens what reads devices; raises `OSError` or `RuntimeError` where there is none.
    """

    def __init__(
        self,
        interval: float,
        devices: Iterable[str],
        attempts: Callable[[], Mapping[Path, tuple[str, ...]]],
        *,
        clock: Callable[[], tuple[float, float]],
        open_library: Callable[[], Nvml] = Nvml,
    ) -> None:
        self.interval = interval
        self._attempts = attempts
        self._clock = clock
        self._series: dict[Path, Series] = {}
        self._closing = threading.Event()
        self._library: Nvml | None = None
        self._thread: threading.Thread | None = None
        if any(name.startswith(NVIDIA) for name in devices):
            try:
                self._library = open_library()
            except (OSError, RuntimeError):
                return
            self._thread = threading.Thread(target=self._run, name="farm-devices", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(5.0)
            self._thread = None
        if self._library is not None:
            self._library.close()
            self._library = None

    def _run(self) -> None:
        while not self._closing.wait(min(self.interval, 1.0)):
            self.sample()

    def sample(self) -> None:
        """Sample what is due."""
        wall, monotonic = self._clock()
        attempts = self._attempts()
        self._series = {path: series for path, series in self._series.items() if path in attempts}
        for path, devices in attempts.items():
            series = self._series.setdefault(path, Series(path, self.interval, monotonic))
            if series.is_due(monotonic):
                samples = [sample for device in devices if (sample := self._read(device, wall)) is not None]
                series.add(monotonic, *samples)

    def _read(self, device: str, wall: float) -> dict[str, Any] | None:
        if self._library is None or not device.startswith(NVIDIA):
            return None
        try:
            seen: DeviceUse = self._library.read(device.removeprefix(NVIDIA))
        except RuntimeError:
            return None
        return {"at": wall, "device": device, "device_memory": seen.memory, "use": seen.use}
