"""`InputReaders`: fetch the standard input of attempts from a coordinator, and give it to them.

Rules that this file guards:
- Where a coordinator goes, another one is asked from the same place. Only an end that is told is the end.
- A worker that was started anew goes on behind what its attempts have been given.
"""

from __future__ import annotations

import logging
import threading
from urllib.parse import quote

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.worker.executor import Executor

log = logging.getLogger(__name__)

WAIT = 10.0
"""Seconds for which a coordinator is asked to wait for more, and after which an attempt that has ended is noticed."""

Key = tuple[str, int]
"""Task and the attempt's revision."""


class InputReaders:
    """Thread-safe. Each input has a thread of its own, which ends with it, or with its attempt.

    `connection`: to the farm.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._reading: set[Key] = set()

    def follow(self, key: Key, executor: Executor) -> None:
        """Read the input of an attempt that this executor runs, unless that is being done. Returns at once."""
        with self._lock:
            if key in self._reading:
                return
            self._reading.add(key)
        threading.Thread(target=self._read, args=(key, executor), name="dtf-farm-stdin", daemon=True).start()

    def _read(self, key: Key, executor: Executor) -> None:
        task, revision = key
        path = f"/api/tasks/{quote(task, safe='')}/stdin"
        try:
            while (offset := executor.fed(task, revision)) is not None:
                try:
                    answer, chunks = self._connection.stream(path, offset=offset, wait=WAIT)
                    data = b"".join(chunks)
                except (DtfError, OSError) as error:
                    log.info("the standard input of task %s: %s", task, error)
                    self._connection.turn()
                    continue
                if data:
                    executor.feed(task, revision, data)
                if answer.headers.get("X-Complete") == "1":
                    executor.feed(task, revision, None)
                    return
        finally:
            with self._lock:
                self._reading.discard(key)
            self._connection.close()
