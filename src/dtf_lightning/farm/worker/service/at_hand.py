"""`AttemptsAtHand`: what a worker knows of its attempts beside what its executor and its spool do. Thread-safe.

An attempt is being prepared, then it runs, then its outcome is kept, and once its output and its artifacts
are stored its result can be said.
"""

from __future__ import annotations

import threading

from dtf_lightning.farm.messages import Result, Started

Key = tuple[str, int]
"""Task and the attempt's revision."""


class AttemptsAtHand:
    """Thread-safe."""

    def __init__(self) -> None:
        self.num_begun = 0
        """Attempts that were begun here."""
        self._lock = threading.Lock()
        self._started: dict[Key, float] = {}
        self._preparing: dict[Key, bool] = {}
        """Whether it was cancelled meanwhile."""
        self._unwanted: set[Key] = set()
        """Those that a coordinator wants to hear of when nothing of them is left."""
        self._waiting: dict[Key, Result] = {}
        """Those whose output or artifacts are not stored yet."""
        self._results: dict[Key, Result] = {}

    def begin(self, key: Key) -> bool:
        """Prepare an attempt; whether it is not being prepared already, and has no result."""
        with self._lock:
            if key in self._preparing or key in self._waiting or key in self._results:
                return False
            self._preparing[key] = False
            self.num_begun += 1
            return True

    def cancel(self, key: Key) -> None:
        """Note that an attempt is not wanted any more."""
        with self._lock:
            self._unwanted.add(key)
            if key in self._preparing:
                self._preparing[key] = True

    def is_cancelled(self, key: Key) -> bool:
        """Whether an attempt that is being prepared is not wanted any more."""
        with self._lock:
            return self._preparing.get(key, False)

    def is_unwanted(self, key: Key) -> bool:
        """Whether somebody wants to hear when nothing is left of an attempt."""
        return key in self._unwanted  # one operation on a set: no lock

    def take_unwanted(self, key: Key) -> bool:
        """Whether somebody wants to hear that nothing is left of an attempt that is not being prepared; told once."""
        with self._lock:
            wanted = key in self._unwanted and key not in self._preparing
            if wanted:
                self._unwanted.discard(key)
            return wanted

    def prepared(self, key: Key) -> None:
        """It runs, or has an outcome already."""
        with self._lock:
            self._preparing.pop(key, None)

    def started(self, key: Key, at: float) -> None:
        """Its process runs since `at`, seconds since the epoch."""
        with self._lock:
            self._started[key] = at

    def ended(self, result: Result) -> None:
        """It has ended, and its outcome is kept; its output may not be stored yet."""
        with self._lock:
            self._started.pop((result.task, result.revision), None)
            self._waiting[result.task, result.revision] = result

    def is_waiting(self, key: Key) -> Result | None:
        """The result of one that has ended and whose output and artifacts are not stored yet; `None`: there is none."""
        with self._lock:
            return self._waiting.get(key)

    def complete(self, result: Result) -> None:
        """Its output and its artifacts are stored: this result, which says where, can be said."""
        key = result.task, result.revision
        with self._lock:
            self._waiting.pop(key, None)
            self._results[key] = result

    def forget(self, key: Key) -> None:
        """Its result is acknowledged."""
        with self._lock:
            self._results.pop(key, None)

    def result(self, key: Key) -> Result | None:
        """The result that can be said and is not acknowledged."""
        with self._lock:
            return self._results.get(key)

    def results(self) -> tuple[Result, ...]:
        """All of these."""
        with self._lock:
            return tuple(self._results.values())

    def all_started(self) -> list[Started]:
        """Those that run."""
        with self._lock:
            return [Started(task=task, revision=revision, at=at) for (task, revision), at in self._started.items()]

    def waiting(self) -> dict[str, int]:
        """Task -> revision, of those that have ended and whose output is not stored yet."""
        with self._lock:
            return dict(self._waiting.keys())

    def preparing(self) -> dict[str, int]:
        """Task -> revision, of those that are being prepared."""
        with self._lock:
            return dict(self._preparing.keys())
