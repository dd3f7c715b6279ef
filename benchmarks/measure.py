"""What the benchmarks share: reading the nodes' step times, medians, tables."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Step:
    at: float
    pid: int
    world_size: int
    step: int


class StepsFile:
    """The steps of one node, read on from where the last look ended: a benchmark must not load what it measures."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[Step] = []
        self._offset = 0

    def read(self) -> list[Step]:
        """All steps so far, in order; a torn last line is left for the next look."""
        if self.path.exists():
            with self.path.open("rb") as file:
                file.seek(self._offset)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._offset += len(whole) + 1
                for line in whole.split(b"\n"):
                    at, pid, world, step = line.split()
                    self.steps.append(Step(float(at), int(pid), int(world), int(step)))
        return self.steps


@dataclass(frozen=True)
class Pause:
    """One rescale as one survivor saw it. Seconds."""

    gap: float
    """From the end of the last step of the old world to the end of the first step of the new."""
    since_event: float | None
    """From the event (a kill) to the end of the first step of the new world."""
    step_time: float
    """Median step of the new world, for comparison: the gap holds one."""


def first_pause(steps: Sequence[Step], after: float, *, event: float | None = None) -> Pause | None:
    """The first change of process or world that was over after `after`; `None` while it is not there yet."""
    for before, first in itertools.pairwise(steps):
        if first.at <= after or (before.pid, before.world_size) == (first.pid, first.world_size):
            continue
        following = [
            s.at for s in steps if s.at >= first.at and s.pid == first.pid and s.world_size == first.world_size
        ]
        if len(following) < 6:
            return None
        step_time = statistics.median(b - a for a, b in itertools.pairwise(following))
        return Pause(first.at - before.at, None if event is None else first.at - event, step_time)
    return None


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, as docs/benchmarks.md holds it."""
    lines = [f"### {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def milliseconds(values: Sequence[float]) -> str:
    """Median (minimum to maximum)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{1000 * middle:.0f} ({1000 * low:.0f} to {1000 * high:.0f})"
