"""`LogSender`: brings the output of attempts to a coordinator, which stores it.

Rules that this file guards:
- Output is read from the worker's disk, where it stays until it is stored: a coordinator that is away costs time only.
- An attempt's result may be said once its output is stored. Where a coordinator cannot store it for `PATIENCE` seconds,
  the result is said without: a full disk there must not hold up the record.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.worker.logs import KeptLogs

log = logging.getLogger(__name__)

PATIENCE = 60.0
PAUSE = 0.5
_CONFLICT = 409

Key = tuple[str, int]
"""Task and the attempt's revision."""


@dataclass
class _Output:
    stored: int
    size: int
    ended: bool = False
    failing_since: float | None = None
    rank: int | None = None
    """Of the gang's member that writes it, once that is looked up."""


class LogSender:
    """Has a thread of its own. Thread-safe.

    Args:
        logs: the worker's.
        connection: to the farm.
        complete: is called, in this object's thread, with each attempt that has ended and whose output is stored.
    """

    def __init__(self, logs: KeptLogs, connection: Connection, complete: Callable[[str, int], object]) -> None:
        self._logs = logs
        self._connection = connection
        self._complete = complete
        self._changed = threading.Condition()
        self._outputs: dict[Key, _Output] = {}
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="dtf-farm-logs", daemon=True)

    def start(self) -> None:
        """Begin, with what an earlier process has left."""
        for task, revision, stored, size in self._logs.waiting():
            with self._changed:
                output = self._outputs.setdefault((task, revision), _Output(stored, size))
                output.stored, output.size = max(stored, output.stored), max(size, output.size)
        self._thread.start()

    def grown(self, task: str, revision: int, size: int) -> None:
        """An attempt has written this many bytes by now."""
        with self._changed:
            output = self._outputs.setdefault((task, revision), _Output(0, 0))
            output.size = max(output.size, size)
            self._changed.notify_all()

    def ended(self, task: str, revision: int, size: int) -> None:
        """An attempt has ended with this much output: `complete` follows."""
        with self._changed:
            output = self._outputs.setdefault((task, revision), _Output(0, 0))
            output.size, output.ended = max(output.size, size), True
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread; what is not stored stays on the disk."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (found := self._next()) is None:
                    self._changed.wait()
                if self._closing:
                    return
                assert found is not None
                key, output = found
            self._send(key, output)

    def _next(self) -> tuple[Key, _Output] | None:
        """Return what has something to send, or to complete; they take turns."""
        for key, output in self._outputs.items():
            if output.ended or output.stored < output.size:
                self._outputs[key] = self._outputs.pop(key)
                return key, output
        return None

    def _send(self, key: Key, output: _Output) -> None:
        task, revision = key
        try:
            while output.stored < output.size and not self._closing:
                data = self._logs.read(task, revision, output.stored)
                if not data:
                    break  # it was taken away
                if output.rank is None:
                    output.rank = self._logs.rank(task, revision)
                told = self._post(task, revision, output.stored, data, output.rank)
                output.stored, output.failing_since = told, None
                self._logs.stored(task, revision, told)
        except (DtfError, OSError) as error:
            now = time.monotonic()
            output.failing_since = output.failing_since or now
            given_up = output.ended and now - output.failing_since > PATIENCE
            log.warning("output of task %s is not stored: %s", task, error)
            if not given_up:
                with self._changed:
                    self._changed.wait_for(lambda: self._closing, PAUSE)
                return
        with self._changed:
            done = output.ended
            if done or output.stored >= output.size:
                self._outputs.pop(key, None)
            if not done:
                return
        self._complete(task, revision)

    def _post(self, task: str, revision: int, offset: int, data: bytes, rank: int) -> int:
        try:
            told = self._connection.send(
                "POST", f"/api/tasks/{task}/logs", data, revision=revision, offset=offset, rank=rank or None
            )
            return int(told["size"])
        except FarmRefused as refusal:
            if refusal.status != _CONFLICT or "wanted" not in refusal.body:
                raise
            return int(refusal.body["wanted"])
