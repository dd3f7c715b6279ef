"""The event log of a run: one JSON object a line, appended by every process of the run to its own file.

Each line is written by one `os.write` on a descriptor opened for appending, so that lines of several writers never mix
and a killed process tears at most its last line, which `read_events` leaves out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `at` is in seconds since the epoch; who says so is `source`."""

    kind: ClassVar[str]
    at: float
    source: str = ""
    """A node id, or `node/local_rank` for a worker."""

    def to_json(self) -> dict[str, Any]:
        return {"v": SCHEMA_VERSION, "kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class NodeJoined(Event):
    kind: ClassVar[str] = "node_joined"
    node: str
    incarnation: int
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class NodeGoneEvent(Event):
    kind: ClassVar[str] = "node_gone"
    node: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class LeaderElected(Event):
    kind: ClassVar[str] = "leader_elected"
    node: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class DirectiveIssued(Event):
    kind: ClassVar[str] = "directive"
    directive: str
    target: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class GenerationFormed(Event):
    kind: ClassVar[str] = "generation_formed"
    generation: int
    rescale: str
    """`start`, `join`, `leave`, `failure` or `mixed`."""
    reason: str
    members: tuple[str, ...]
    world_size: int


@dataclass(frozen=True, kw_only=True)
class WorkerRescaled(Event):
    """A worker's view of one rescale, written after its first step in the new generation."""

    kind: ClassVar[str] = "worker_rescaled"
    generation: int
    rescale: str
    reason: str
    world_size: int
    rank: int
    step: int
    """Optimizer steps committed when the first step of the new generation was done."""
    pause: float
    """Seconds from the beginning of the unwinding to the end of the first step."""
    phases: dict[str, float]
    """Seconds by phase: unwind, wait, group, state, wrap, first_step."""
    redrawn: bool
    """A step in flight was rolled back and its samples were drawn again."""


@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event):
    kind: ClassVar[str] = "worker_lost"
    node: str
    local_rank: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    kind: ClassVar[str] = "run_ended"
    phase: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A line of a kind that this version does not know, as it was read."""

    kind: ClassVar[str] = "unknown"
    data: dict[str, Any]


_KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        NodeJoined,
        NodeGoneEvent,
        LeaderElected,
        DirectiveIssued,
        GenerationFormed,
        WorkerRescaled,
        WorkerLost,
        RunEnded,
    )
}


class EventLog:
    """An append-only JSONL file. Thread-safe: one `os.write` a line."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def write(self, event: Event) -> None:
        """Append one event. A closed log swallows it: events are for people, training goes first."""
        if self._fd >= 0:
            os.write(self._fd, json.dumps(event.to_json(), separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of one file, in order; a torn last line is left out, a kind from a newer version is `UnknownEvent`.

    Raises `OSError` when the file cannot be read, `ValueError` for a broken line that is not the last.
    """
    with Path(path).open("rb") as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends with a newline
        try:
            data = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: expected one JSON object a line, got {line[:80]!r}") from error
        yield _event(data)


def _event(data: dict[str, Any]) -> Event:
    cls = _KINDS.get(data.get("kind", ""))
    if cls is None:
        return UnknownEvent(at=data.get("at", 0.0), source=data.get("source", ""), data=data)
    known = {f.name for f in fields(cls)}
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items() if name in known}
    return cls(**values)
