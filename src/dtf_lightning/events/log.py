"""An event log: one JSON object a line, appended by every process of a run to its own file.

Rules that this file guards:

* each line is written by one `os.write` on a descriptor opened for appending, so that lines of several writers never
  mix and a killed process tears at most its last line, which readers leave out;
* training goes first: a folder that cannot be written to, or a disk that is full, costs events and one warning;
* a log holds the events of one product: its registry says what lines mean, and reads older versions of them.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from dtf_lightning.events.registry import Event, EventLogError, EventRegistry

log = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Events that a log keeps which does not know yet where its file is; the oldest go first."""


class EventLog:
    """An append-only JSONL file. Thread-safe: one `os.write` a line. No method raises `OSError`.

    Args:
        registry: of the product whose events these are.
        path: `None` keeps events in memory until `open` says where the file is.
    """

    def __init__(self, registry: EventRegistry, path: str | Path | None = None) -> None:
        self._registry = registry
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
        assert event.registry is self._registry, f"{event.kind} is an event of another product"
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
            log.warning("the event log cannot be written (%s): %s", problem, self._registry.without_log)


def events_path(run_dir: str | Path, writer: str) -> Path:
    """Where a process of the run writes: `writer` is a node, or `node.local_rank.incarnation` of a worker."""
    return Path(run_dir) / "events" / f"{writer}.jsonl"


def read_events(registry: EventRegistry, path: str | Path) -> Iterator[Event]:
    """The events of one file, in order; a torn last line is left out, an unknown kind is `UnknownEvent`.

    Raises `OSError` when the file cannot be read, `NewerEvents`, and `EventLogError` for a broken line that is not the
    last. `dtf results sync` passes broken lines over and counts them.
    """
    with Path(path).open("rb") as file:
        lines = file.read().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # a whole line ends with a newline
        try:
            yield registry.parse(line)
        except EventLogError as error:
            raise type(error)(f"{path}:{number}: {error}") from error.__cause__
