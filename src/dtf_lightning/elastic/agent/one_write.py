"""`OneWrite` makes a transaction that is wanted until it is applied, or until it is not wanted any more."""

from __future__ import annotations

from collections.abc import Iterator

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.etcd.session import Write, WriteOutcome


class OneWrite:
    """A transaction of which one attempt at a time is under way, with a pause after one that was not applied.

    Args:
        refused, unanswered: seconds of that pause.
    """

    def __init__(self, clock: Clock, *, refused: float, unanswered: float) -> None:
        self.deadline = Deadline()
        """The time at which `attempt` must be called again; an attempt that is under way ends with an event."""
        self._clock = clock
        self._pauses = {
            WriteOutcome.APPLIED: 0.0,
            WriteOutcome.REFUSED: refused,
            WriteOutcome.UNKNOWN: unanswered,
        }
        self._in_flight: Write | None = None
        self._retry_at = 0.0

    @property
    def under_way(self) -> bool:
        """Whether an attempt was made whose outcome is not known yet."""
        return self._in_flight is not None

    def attempt(self, write: Write) -> Iterator[Write]:
        """Yield the write if it may be tried now; its outcome must come back through `written`."""
        self.deadline.clear()
        if self._in_flight is not None:
            return
        if self._clock.monotonic() < self._retry_at:
            self.deadline.bring_forward(self._retry_at)
            return
        self._in_flight = write
        yield write

    def written(self, write: Write, outcome: WriteOutcome) -> bool:
        """Take in the outcome of a write; return whether it was this object's."""
        if write is not self._in_flight:
            return False
        self._in_flight = None
        self._retry_at = self._clock.monotonic() + self._pauses[outcome]
        return True
