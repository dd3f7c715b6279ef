"""How long a rescale kept this worker from training, phase by phase."""

from __future__ import annotations

from dtf_lightning.clock import Clock, SystemClock


class PauseClock:
    """Marks the phases of one rescale as this worker sees it. Seconds, monotonic."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._started: float | None = None
        self._last = 0.0
        self.phases: dict[str, float] = {}

    def start(self) -> None:
        """A rescale begins, or one that failed while forming begins anew: that is one pause."""
        if self._started is None:
            self._started = self._last = self._clock.monotonic()
            self.phases = {}

    def mark(self, phase: str) -> None:
        """The time since the last mark was this phase; does nothing outside of a rescale."""
        if self._started is None:
            return
        now = self._clock.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    def stop(self) -> float | None:
        """Seconds since `start`; `None` if it did not run."""
        if self._started is None:
            return None
        self.mark("first_step")
        pause, self._started = self._last - self._started, None
        return pause
