"""`StatusNote` decides when the run's `status` key is written, by which `dtf status` says what the run waits for."""

from __future__ import annotations

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.run.keys import RunKeys, RunStatusNote
from dtf_lightning.etcd.store import Put

STATUS_PAUSE = 0.3
"""Seconds between two changes of the key: reasons count seconds."""


class StatusNote:
    """The text about what the run waits for, and the decision when it is news. Used by the loop's thread only."""

    def __init__(self, keys: RunKeys, node: str, clock: Clock) -> None:
        self.deadline = Deadline()
        """The time at which `due` must be called at the latest."""
        self._keys = keys
        self._node = node
        self._clock = clock
        self._last: RunStatusNote | None = None
        self._written_at = float("-inf")

    def due(self, reason: str, *, paused: bool, busy: bool) -> Put | None:
        """Return the note if it is to be written now. `busy`: whether earlier writes are still on their way."""
        self.deadline.clear()
        if self._last is not None and (self._last.reason, self._last.paused) == (reason, paused):
            return None
        now = self._clock.monotonic()
        if busy or now < self._written_at + STATUS_PAUSE:
            self.deadline.bring_forward(max(now, self._written_at) + STATUS_PAUSE)
            return None
        return self.put(reason, paused=paused)

    def put(self, reason: str, *, paused: bool = False) -> Put:
        """Return the note, for a transaction that is written in any case."""
        self._last = RunStatusNote(leader=self._node, reason=reason, paused=paused, at=self._clock.wall())
        self._written_at = self._clock.monotonic()
        return Put(self._keys.status, self._last.encode())

    def forget(self) -> None:
        """Note that the last note did not arrive."""
        self._last = None
