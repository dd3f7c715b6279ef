"""`Outbox` holds a leader's writes: they are made in order, one at a time, and again until etcd has answered."""

from __future__ import annotations

from collections import deque

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.etcd.store import Compare, Delete, Put

RETRY_PAUSE = 0.2
"""Seconds before a write is tried again which etcd did not answer."""


class Outbox:
    """The writes of one term of a leader.

    Args:
        fence: what has to hold for every write; once it does not, no further write can succeed.
    """

    def __init__(self, fence: Compare, clock: Clock) -> None:
        self.deadline = Deadline()
        """The time at which `next` must be called again; a write that is under way ends with an event."""
        self._fence = fence
        self._clock = clock
        self._writes: deque[Write] = deque()
        self._in_flight: Write | None = None
        self._retry_at = 0.0

    @property
    def empty(self) -> bool:
        """Whether every write has been applied."""
        return not self._writes

    def add(self, label: str, *puts: Put | Delete) -> None:
        """Append a write, which is made if the fence holds by then."""
        self._writes.append(Write(label=label, compares=(self._fence,), puts=puts))

    def next(self) -> Write | None:
        """Return the write that is to be tried now; its outcome must come back through `written`."""
        self.deadline.clear()
        if self._in_flight is not None or not self._writes:
            return None
        if self._clock.monotonic() < self._retry_at:
            self.deadline.bring_forward(self._retry_at)
            return None
        self._in_flight = self._writes[0]
        return self._in_flight

    def written(self, write: Write, outcome: WriteOutcome) -> bool:
        """Take in the outcome of a write; return whether it was one of this outbox's."""
        if write is not self._in_flight:
            return False
        self._in_flight = None
        if outcome is WriteOutcome.APPLIED:
            self._writes.popleft()
        elif outcome is WriteOutcome.UNKNOWN:
            self._retry_at = self._clock.monotonic() + RETRY_PAUSE
        return True
