"""The event log of a run: one JSON object a line, appended by every process of the run to its own file.

Rules that this file guards:

* each line is written by one `os.write` on a descriptor opened for appending, so that lines of several writers never
  mix and a killed process tears at most its last line, which readers leave out;
* training goes first: a folder that cannot be written to, or a disk that is full, costs events and one warning;
* every line carries the schema's version. Older lines are migrated when they are read, newer ones are refused.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2

MAX_WAITING = 1000
"""Events that a log keeps which does not know yet where its file is; the oldest go first."""


class EventLogError(ValueError):
    """A line that is no event of a version that this program reads; the message names file and line."""


class NewerEvents(EventLogError):
    """Written by a newer version of this package: nothing is wrong with the file."""


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
    incarnation: int = 0
    """Which start of the node's workers this is, from 1; 0 where an older version did not say. Since version 2."""


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
class WorkerStarted(Event):
    """A worker has checked in with its agent and sets up."""

    kind: ClassVar[str] = "worker_started"
    run_id: str
    node: str
    local_rank: int
    incarnation: int
    pid: int
    host: str
    started_at: float
    """When the process was started: seconds since the epoch."""
    joiner: bool
    """The run trained already."""


@dataclass(frozen=True, kw_only=True)
class WorkerEnded(Event):
    """A worker's part in the run is over; one that is killed writes none."""

    kind: ClassVar[str] = "worker_ended"
    incarnation: int
    reason: str
    step: int


@dataclass(frozen=True, kw_only=True)
class GenerationEntered(Event):
    """A worker has formed a generation's process group and holds the same state as all its members."""

    kind: ClassVar[str] = "generation_entered"
    generation: int
    rescale: str
    reason: str
    members: tuple[str, ...]
    world_size: int
    rank: int
    incarnation: int
    step: int
    epoch: int
    formed_at: float
    """When the coordinator decided on it: seconds since the epoch."""
    failed: tuple[str, ...] = ()
    """Members whose failure led to it."""


@dataclass(frozen=True, kw_only=True)
class TrainingDescribed(Event):
    """What is trained and how, once per worker."""

    kind: ClassVar[str] = "training_described"
    description: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HardwareSeen(Event):
    """What the node has, once per generation by its first worker."""

    kind: ClassVar[str] = "hardware"
    generation: int
    node: str
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepsDone(Event):
    """Optimizer steps that this worker has committed since its last such event."""

    kind: ClassVar[str] = "steps"
    generation: int
    world_size: int
    rank: int
    epoch: int
    step: int
    """Optimizer steps committed in all."""
    steps: int
    """Of which since the last event."""
    seconds: float
    """Since the last event, or since the generation's first step."""
    samples: int
    """That the whole world consumed in these steps."""
    data_wait: float
    """Seconds of them that this worker waited for data."""
    loss: float | None = None
    """This worker's own, of the last batch; `None` where it is none or not finite."""
    lr: float | None = None
    rss: int = 0
    """Bytes of host memory that this process holds."""
    device_memory: int | None = None
    """Peak bytes allocated on the device; `None` without one."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """A validation's results, by rank 0."""

    kind: ClassVar[str] = "evaluated"
    generation: int
    epoch: int
    step: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """By rank 0."""

    kind: ClassVar[str] = "checkpoint_saved"
    generation: int
    step: int
    epoch: int
    path: str
    seconds: float
    size: int
    """Bytes; 0 where the path is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Event):
    """By rank 0."""

    kind: ClassVar[str] = "checkpoint_pruned"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class TimeSpent(Event):
    """What this worker's time went into so far, since its process was started."""

    kind: ClassVar[str] = "time_spent"
    generation: int
    incarnation: int
    wall: float
    """Seconds since the process was started, by the wall clock."""
    seconds: dict[str, float]
    """By bucket (`dtf_lightning.training.time_account`), by the monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A line of a kind that this version does not know, as it was read."""

    kind: ClassVar[str] = "unknown"
    data: dict[str, Any]


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        NodeJoined, NodeGoneEvent, LeaderElected, DirectiveIssued, GenerationFormed, WorkerRescaled, WorkerLost, RunEnded,
        WorkerStarted, WorkerEnded, GenerationEntered, TrainingDescribed, HardwareSeen, StepsDone, Evaluated,
        CheckpointSaved, CheckpointPruned, TimeSpent,
    )
}  # fmt: skip


class EventLog:
    """An append-only JSONL file. Thread-safe: one `os.write` a line. No method raises `OSError`.

    Args:
        path: `None` keeps events in memory until `open` says where the file is.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._fd = -1
        self._torn = False
        self._warned = False
        self._closed = False
        self._waiting: deque[Event] = deque(maxlen=MAX_WAITING)
        self.path: Path | None = None
        if path is not None:
            self.open(path)

    def open(self, path: str | Path) -> None:
        """Write to this file from now on, what has waited first; does nothing for a log that has its file already."""
        if self._fd >= 0 or self._warned or self._closed:
            return
        self.path = path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._fd).st_size
            self._torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
        except OSError as error:
            self._warn(f"{path}: {error.strerror}")
        while self._waiting:
            self.write(self._waiting.popleft())

    def write(self, event: Event) -> None:
        """Append one event. A closed log swallows it."""
        if self._fd < 0:
            if not (self._warned or self._closed):
                self._waiting.append(event)
            return
        # The newline ends what an earlier write could not finish: that line is lost, this one is not.
        line = b"\n" * self._torn + json.dumps(event.to_json(), separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
            self._torn = written < len(line) and (written > 0 or self._torn)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._warn(str(error.strerror))

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _warn(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the event log cannot be written (%s): training goes on, `dtf report` will miss events", problem
            )


def events_path(run_dir: str | Path, writer: str) -> Path:
    """Where a process of the run writes: `writer` is a node, or `node.local_rank.incarnation` of a worker."""
    return Path(run_dir) / "events" / f"{writer}.jsonl"


def read_events(path: str | Path) -> Iterator[Event]:
    """The events of one file, in order; a torn last line is left out, an unknown kind is `UnknownEvent`.

    Raises `OSError` when the file cannot be read, `NewerEvents`, and `EventLogError` for a broken line that is not the
    last. `dtf results sync` passes broken lines over and counts them.
    """
    with Path(path).open("rb") as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends with a newline
        try:
            yield parse_event(line)
        except EventLogError as error:
            raise type(error)(f"{path}:{number}: {error}") from error.__cause__


def parse_event(line: bytes | str) -> Event:
    """The event of one line, older versions migrated. Raises `EventLogError`, `NewerEvents`."""
    try:
        data = json.loads(line)
    except ValueError as error:
        raise EventLogError(f"expected one JSON object a line, got {line[:80]!r}") from error
    if not isinstance(data, dict):
        raise EventLogError(f"expected one JSON object a line, got {line[:80]!r}")
    version = data.get("v")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise EventLogError(f"no line of an event log: its version is {version!r}")
    if version > SCHEMA_VERSION:
        raise NewerEvents(
            f"event version {version}, this program reads up to {SCHEMA_VERSION}; read it with the version of "
            "dtf-lightning that wrote it, or a newer one: pip install --upgrade dtf-lightning"
        )
    for older in range(version, SCHEMA_VERSION):
        _MIGRATIONS[older](data)
    return _event(data)


def _from_1(data: dict[str, Any]) -> None:
    """Version 1 did not say which start of a node's workers a rescaled worker belonged to."""
    if data.get("kind") == "worker_rescaled":
        data["incarnation"] = 0


_MIGRATIONS: dict[int, Callable[[dict[str, Any]], None]] = {1: _from_1}
"""From each older version to the next one, in place."""


def _event(data: dict[str, Any]) -> Event:
    cls = KINDS.get(data.get("kind", ""))
    if cls is None:
        return UnknownEvent(at=data.get("at", 0.0), source=data.get("source", ""), data=data)
    values: dict[str, Any] = {}
    for name, check, required in _fields(cls):  # type: ignore[arg-type]  # a class is hashable
        if name in data:
            value = data[name]
            if not check(value):
                raise EventLogError(f"{cls.kind}: {name} is {value!r}, which it cannot be")
            values[name] = tuple(value) if isinstance(value, list) else value
        elif required:
            raise EventLogError(f"{cls.kind}: {name} is missing")
    return cls(**values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_dict(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is dict and all(map(of, value.values()))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "int": lambda value: type(value) is int,
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "float | None": lambda value: value is None or _is_number(value),
    "int | None": lambda value: value is None or type(value) is int,
    "tuple[str, ...]": lambda value: type(value) is list and all(type(item) is str for item in value),
    "dict[str, float]": _is_dict(_is_number),
    "dict[str, Any]": _is_dict(lambda _: True),
}
"""By the annotation of a field: what a JSON value of it must be."""


@cache
def _fields(cls: type[Any]) -> list[tuple[str, Callable[[Any], bool], bool]]:
    """Name, check and whether it must be there, of each field."""
    return [(f.name, _CHECKS[str(f.type)], f.default is MISSING and f.default_factory is MISSING) for f in fields(cls)]
