"""A leader's writes: in order, one at a time, again until etcd has answered."""

from __future__ import annotations

from collections import deque

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Compare, Delete, Put

RETRY_PAUSE = 0.2
"""Seconds before a write is tried again that etcd did not answer."""


class Outbox:
    """The writes of one term.

    Args:
        fence: what has to hold for every write; once it does not, no further write can succeed.
    """

    def __init__(self, fence: Compare, clock: Clock) -> None:
        self.deadline = Deadline()
        """When `next` is worth another call; a write that is under way ends with an event."""
        self._fence = fence
        self._clock = clock
        self._writes: deque[Write] = deque()
        self._in_flight: Write | None = None
        self._retry_at = 0.0

    @property
    def empty(self) -> bool:
        """Everything has been applied."""
        return not self._writes

    def add(self, label: str, *puts: Put | Delete) -> None:
        """Write this behind the others, if the fence holds then."""
        self._writes.append(Write(label=label, compares=(self._fence,), puts=puts))

    def next(self) -> Write | None:
        """The write to be tried now; `written` must be told how it went."""
        self.deadline.clear()
        if self._in_flight is not None or not self._writes:
            return None
        if self._clock.monotonic() < self._retry_at:
            self.deadline.bring_forward(self._retry_at)
            return None
        self._in_flight = self._writes[0]
        return self._in_flight

    def written(self, write: Write, outcome: WriteOutcome) -> bool:
        """How a write went; false if it was none of this outbox's."""
        if write is not self._in_flight:
            return False
        self._in_flight = None
        if outcome is WriteOutcome.APPLIED:
            self._writes.popleft()
        elif outcome is WriteOutcome.UNKNOWN:
            self._retry_at = self._clock.monotonic() + RETRY_PAUSE
        return True
