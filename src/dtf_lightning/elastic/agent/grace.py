"""The grace period: the time that a node has to leave its run."""

from __future__ import annotations

from dtf_lightning.clock import Clock, Deadline


class GracePeriod:
    """A grace period begins when its node is asked to leave; a preemption notice may shorten it before and after that.

    Args:
        seconds: how long it is.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self.ends = Deadline()
        """The end of the period; unset while the node stays."""
        self._clock = clock

    def shorten(self, seconds: float | None) -> None:
        """Let the period end at most `seconds` from now; `None` leaves it as it is."""
        if seconds is None:
            return
        self.seconds = min(self.seconds, seconds)
        if self.ends.at is not None:
            self.ends.bring_forward(self._clock.monotonic() + seconds)

    @property
    def presses_at(self) -> float | None:
        """The time (monotonic seconds) at half of the period, when a leaver stops waiting; `None` if it stays."""
        return None if self.ends.at is None else self.ends.at - self.seconds / 2

    def begin(self) -> bool:
        """Begin the period, because the node leaves; return whether it had not begun before."""
        if self.ends.at is not None:
            return False
        self.ends.bring_forward(self._clock.monotonic() + self.seconds)
        return True

    def withdraw(self) -> None:
        """End the period, because the node stays after all."""
        self.ends.clear()
