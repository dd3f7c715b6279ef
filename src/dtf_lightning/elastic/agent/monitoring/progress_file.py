"""`ProgressFile` keeps a run's state, as this node sees it, in a file of one line of JSON, for programs that start runs."""

from __future__ import annotations

import json
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.events import GenerationEntered, GenerationFormed, StepsDone, TimeSpent
from dtf_lightning.events.registry import Event
from dtf_lightning.whole_files import write_whole

PAUSE = 1.0
"""Seconds between two writes."""


class ProgressFile:
    """A `Sink`. The line has those of these numbers that are known: `generation`, `world_size` (workers of that generation), `step`
    (optimizer steps committed), `goodput` (share of the time of this node's workers that went into committed steps), and
    `samples_per_second` of the whole world. The file is replaced as a whole.

    Raises `OSError` from `take` and `close` where it cannot be written.

    Args:
        path: its folder must be there.
    """

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()
        self._told: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._written_at = float("-inf")
        self._spent: dict[str, tuple[float, float]] = {}
        """Worker -> seconds in committed steps, and all."""

    def take(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case GenerationEntered() | GenerationFormed():
                if event.generation >= self._told.get("generation", 0):
                    self._told |= {"generation": event.generation, "world_size": event.world_size}
            case StepsDone():
                self._told |= {"step": event.step}
                if event.seconds > 0:
                    self._told |= {"samples_per_second": round(event.samples / event.seconds, 3)}
            case TimeSpent():
                self._spent[event.source] = event.seconds.get("productive", 0.0), event.wall
                productive, wall = (sum(column) for column in zip(*self._spent.values(), strict=True))
                self._told |= {"goodput": round(productive / wall, 4)} if wall > 0 else {}
        if self._clock.monotonic() >= self._written_at + PAUSE:
            self._write()

    def close(self) -> None:
        """Write what has not been written."""
        self._write()

    def _write(self) -> None:
        if self._told != self._written:
            write_whole(self._path, (json.dumps(self._told) + "\n").encode())
            self._written, self._written_at = dict(self._told), self._clock.monotonic()
