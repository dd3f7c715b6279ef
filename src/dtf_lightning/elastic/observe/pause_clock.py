"""Measures how long a rescale kept this worker from training, phase by phase."""

from __future__ import annotations

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.elastic.observe.time_account import Bucket, TimeAccount


class PauseClock:
    """Marks the phases of one rescale, as this worker sees it, in monotonic seconds.

    It tells `account` of every phase, also of those of the first generation, which is no rescale.
    """

    def __init__(self, clock: Clock | None = None, account: TimeAccount | None = None) -> None:
        self._clock = clock or SystemClock()
        self._account = account
        self._started: float | None = None
        self._last = 0.0
        self.phases: dict[str, float] = {}

    def start(self) -> None:
        """Begin the pause of a rescale; a rescale that failed while forming and begins anew is part of that pause."""
        if self._account is not None:
            self._account.enter(Bucket.RESCALE_UNWIND)
        if self._started is None:
            self._started = self._last = self._clock.monotonic()
            self.phases = {}

    def mark(self, phase: str) -> None:
        """Count the time since the last mark as this phase; outside of a rescale it belongs to no pause."""
        if self._account is not None:
            self._account.charge(self._bucket(phase))
        if self._started is None:
            return
        if self._account is not None:
            self._account.current = Bucket.RESCALE_FIRST_STEP  # unless a mark says later that it was another
        now = self._clock.monotonic()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self._last
        self._last = now

    def stop(self) -> float | None:
        """End the pause, because training goes on; return its seconds, `None` if there was none."""
        pause = None
        if self._started is not None:
            self.mark("first_step")
            pause, self._started = self._last - self._started, None
        if self._account is not None:
            self._account.enter(Bucket.PRODUCTIVE)
        return pause

    def _bucket(self, phase: str) -> Bucket:
        if phase == "wait":
            return Bucket.WAITING
        return Bucket.STARTUP if self._started is None else Bucket(f"rescale_{phase}")
