"""The time that a node has to leave its run."""

from __future__ import annotations

from dtf_lightning.clock import Clock, Deadline


class GracePeriod:
    """Begins when the node is asked to leave; a notice that leaves less time shortens it, before and after that.

    Args:
        seconds: how long it is.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self.ends = Deadline()
        """Without a moment while the node stays."""
        self._clock = clock

    def shorten(self, seconds: float | None) -> None:
        """No more than `seconds` from now are left; `None`: nobody knows better."""
        if seconds is None:
            return
        self.seconds = min(self.seconds, seconds)
        if self.ends.at is not None:
            self.ends.bring_forward(self._clock.monotonic() + seconds)

    @property
    def presses_at(self) -> float | None:
        """When half of it is over (monotonic seconds): a leaver that has waited for others goes now; `None`: it stays."""
        return None if self.ends.at is None else self.ends.at - self.seconds / 2

    def begin(self) -> bool:
        """The node leaves; true if that is new."""
        if self.ends.at is not None:
            return False
        self.ends.bring_forward(self._clock.monotonic() + self.seconds)
        return True

    def withdraw(self) -> None:
        """The node stays after all."""
        self.ends.clear()
