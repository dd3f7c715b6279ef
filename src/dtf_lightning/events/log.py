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
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from dtf_lightning.events.kinds import (
    KINDS,
    SCHEMA_VERSION,
    CheckpointPruned,
    CheckpointSaved,
    DirectiveIssued,
    Diverged,
    Evaluated,
    Event,
    GenerationEntered,
    GenerationFormed,
    HardwareSeen,
    LeaderElected,
    LearningRateScaled,
    NodeGoneEvent,
    NodeJoined,
    RolledBack,
    RunEnded,
    StepsDone,
    StragglerSeen,
    TimeSpent,
    TrainingDescribed,
    UnknownEvent,
    WorkerEnded,
    WorkerLost,
    WorkerRescaled,
    WorkersPaced,
    WorkerStarted,
)

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Events that a log keeps which does not know yet where its file is; the oldest go first."""


__all__ = [
    "KINDS",
    "SCHEMA_VERSION",
    "CheckpointPruned",
    "CheckpointSaved",
    "DirectiveIssued",
    "Diverged",
    "Evaluated",
    "Event",
    "EventLog",
    "EventLogError",
    "GenerationEntered",
    "GenerationFormed",
    "HardwareSeen",
    "LeaderElected",
    "LearningRateScaled",
    "NewerEvents",
    "NodeGoneEvent",
    "NodeJoined",
    "RolledBack",
    "RunEnded",
    "StepsDone",
    "StragglerSeen",
    "TimeSpent",
    "TrainingDescribed",
    "UnknownEvent",
    "WorkerEnded",
    "WorkerLost",
    "WorkerRescaled",
    "WorkerStarted",
    "WorkersPaced",
    "events_path",
    "parse_event",
    "read_events",
]


class EventLogError(ValueError):
    """A line that is no event of a version that this program reads; the message names file and line."""


class NewerEvents(EventLogError):
    """Written by a newer version of this package: nothing is wrong with the file."""


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
