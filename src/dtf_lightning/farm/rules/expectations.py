"""How long a task is expected to take, from how long others like it took. Pure.

| known of a task | expected |
|---|---|
| tasks of its project and name have completed | their median; of one or two of them the longest |
| none has, but tasks whose names differ only in the brackets at their end: instances of one matrix or array | the same of these |
| none has, but tasks of its project with the same command | the same of these |
| nothing | `None`: nobody knows |
| at least `FEW` of these ran on workers of one device class | there their own median; elsewhere as above |

The longest of one or two, because a task that is held to be too short holds up whoever was promised its place, and one that
is held to be too long only starts early. Rounded to two digits: tasks that take about as long are one to the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FEW = 3
"""Tasks below which their median says little."""
LATEST = 25
"""Of the tasks that are alike, so many of the latest count."""

Key = tuple[str, str]
"""Project, and a name or a command."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Tasks that have completed and had the same project, name and command."""

    project: str
    name: str
    command: tuple[str, ...]
    seconds: tuple[float, ...]
    """How long each took, the latest first."""
    workers: tuple[str, ...] = ()
    """The worker of each; "": several, or nobody knows."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a kind of tasks."""

    seconds: float
    """How long the next one is expected to take, wherever it runs."""
    speeds: Mapping[str, float] = field(default_factory=dict)
    """Device class -> how many times as fast it is there, for those of which enough is known."""


def typical(seconds: Sequence[float]) -> float | None:
    """Return how long the next one is expected to take; `None` without any that took a time. The latest stand first."""
    known = sorted(one for one in seconds[:LATEST] if one >= 0 and math.isfinite(one))
    if not known:
        return None
    return rounded(known[len(known) // 2] if len(known) >= FEW else known[-1])


def rounded(seconds: float) -> float:
    """Return seconds with two digits that count."""
    return float(f"{seconds:.1e}")


@dataclass(frozen=True)
class Expectations:
    """What is known, made once from samples and asked often."""

    by_name: Mapping[Key, Known] = field(default_factory=dict)
    by_stem: Mapping[Key, Known] = field(default_factory=dict)
    by_command: Mapping[Key, Known] = field(default_factory=dict)

    @classmethod
    def of_samples(cls, samples: Iterable[Sample], classes: Mapping[str, str] | None = None) -> Expectations:
        """Return what these samples tell. `classes`: worker -> its device class, of the workers that are known."""
        tables: tuple[dict[Key, list[_Run]], ...] = ({}, {}, {})
        classes = classes or {}
        for sample in samples:
            names = (sample.name, _stem(sample.name), _text(sample.command))
            devices = [classes.get(worker, "") for worker in sample.workers] or [""] * len(sample.seconds)
            runs = list(zip(sample.seconds, devices, strict=True))
            for table, name in zip(tables, names, strict=True):
                if name:
                    table.setdefault((sample.project, name), []).extend(runs)
        return cls(*map(_known, tables))

    def of(self, project: str, name: str, command: Sequence[str]) -> Known | None:
        """Return what is known of a task's kind; `None`: nothing. `command` as results keep it."""
        if name:
            for table, key in ((self.by_name, name), (self.by_stem, _stem(name))):
                found = table.get((project, key)) if key else None
                if found is not None:
                    return found
        return self.by_command.get((project, _text(command))) if self.by_command else None


_Run = tuple[float, str]
"""Seconds, and the device class; "" where it is not known."""


def _known(table: Mapping[Key, list[_Run]]) -> dict[Key, Known]:
    return {
        key: Known(found, _speeds(found, runs))
        for key, runs in table.items()
        if (found := typical([seconds for seconds, _ in runs])) is not None
    }


def _speeds(expected: float, runs: Iterable[_Run]) -> dict[str, float]:
    by_device: dict[str, list[float]] = {}
    for seconds, device in runs:
        if device:
            by_device.setdefault(device, []).append(seconds)
    found = {device: typical(seconds) for device, seconds in by_device.items() if len(seconds) >= FEW}
    return {device: rounded(expected / seconds) for device, seconds in found.items() if seconds and expected}


def _stem(name: str) -> str:
    return name[: name.rindex("[")] if name.endswith("]") and "[" in name else ""


def _text(command: Sequence[str]) -> str:
    return "\0".join(command)
