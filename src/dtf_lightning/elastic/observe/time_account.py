"""What a worker's time goes into: every moment since its process was started is charged to exactly one bucket.

Rules that this file guards:

* the buckets add up to the time since the start, whatever happens, because time is only ever moved between them;
* a step counts as productive only while it is committed: what an undone step took is moved to `lost`.
"""

from __future__ import annotations

from enum import Enum

from dtf_lightning.clock import Clock, SystemClock


class Bucket(Enum):
    """Where time goes. The value is the name in event logs, in the database and in reports."""

    PRODUCTIVE = "productive"  # steps that were committed, with their hooks
    DATA_WAIT = "data_wait"  # the next batch was not there yet
    VALIDATION = "validation"
    CHECKPOINT = "checkpoint"  # training stood still for a checkpoint
    STARTUP = "startup"  # from the process's start to the end of its first step, waiting left out
    WAITING = "waiting"  # for the other workers: at the start, in a rescale, at the end
    RESCALE_UNWIND = "rescale_unwind"
    RESCALE_GROUP = "rescale_group"
    RESCALE_STATE = "rescale_state"
    RESCALE_WRAP = "rescale_wrap"
    RESCALE_FIRST_STEP = "rescale_first_step"
    LOST = "lost"  # steps that were begun and undone


STEADY = (Bucket.PRODUCTIVE, Bucket.DATA_WAIT)


class TimeAccount:
    """Of one worker. Not thread-safe: the training thread keeps it.

    Args:
        age: seconds that the process had lived when this account was opened; they were start-up.
    """

    def __init__(self, clock: Clock | None = None, *, age: float = 0.0) -> None:
        self._clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._last = self._monotonic() - age
        self._wall_start = self._clock.wall() - age
        self._seconds = dict.fromkeys(Bucket, 0.0)
        self._before_step = 0.0
        """Productive seconds when the running step was begun."""
        self.current = Bucket.STARTUP
        """What the time from now on goes into."""

    @property
    def started_at(self) -> float:
        """When the process was started: seconds since the epoch."""
        return self._wall_start

    def charge(self, bucket: Bucket) -> None:
        """The time since the last call went into this bucket, as is known only now."""
        now = self._monotonic()
        self._seconds[bucket] += now - self._last
        self._last = now

    def enter(self, bucket: Bucket) -> Bucket:
        """From now on time goes into this bucket; the former one."""
        former = self.current
        self.charge(former)
        self.current = bucket
        return former

    def data_wanted(self) -> None:
        """The loop asks for the next batch. Two dictionary accesses and a clock: called for every batch."""
        if self.current is Bucket.PRODUCTIVE:
            self.enter(Bucket.DATA_WAIT)

    def data_there(self) -> None:
        """The batch has come."""
        if self.current is Bucket.DATA_WAIT:
            self.enter(Bucket.PRODUCTIVE)

    def step_begins(self) -> None:
        """All that was charged so far belongs to committed steps."""
        self._before_step = self._seconds[Bucket.PRODUCTIVE]

    def step_undone(self) -> None:
        """The running step is rolled back: its time is lost."""
        lost = self._seconds[Bucket.PRODUCTIVE] - self._before_step
        self._seconds[Bucket.PRODUCTIVE] -= lost
        self._seconds[Bucket.LOST] += lost

    def of(self, bucket: Bucket) -> float:
        """Seconds charged to this bucket so far."""
        return self._seconds[bucket]

    def total(self) -> float:
        """Seconds charged to all buckets so far."""
        return sum(self._seconds.values())

    def wall(self) -> float:
        """Seconds since the start, by the wall clock; the buckets are by the monotonic one."""
        return self._clock.wall() - self._wall_start

    def seconds(self) -> dict[str, float]:
        """By bucket's name, up to now."""
        self.charge(self.current)
        return {bucket.value: round(seconds, 6) for bucket, seconds in self._seconds.items()}
