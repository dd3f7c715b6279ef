"""The account of a worker's time: every moment since its process was started is charged to exactly one bucket.

Rules that this file guards:

* the buckets add up to the time since the start, whatever happens, because time is only ever moved between them;
* a step counts as productive only while it is committed: what an undone step took is moved to `lost`.
"""

from __future__ import annotations

from enum import Enum

from dtf_lightning.clock import Clock, SystemClock


class Bucket(Enum):
    """What time is spent on. The value is the name in event logs, in the database and in reports."""

    PRODUCTIVE = "productive"  # steps that were committed, with their hooks
    DATA_WAIT = "data_wait"  # waiting for the next batch, which was not ready yet
    VALIDATION = "validation"
    CHECKPOINT = "checkpoint"  # training stood still for a checkpoint
    STARTUP = "startup"  # from the process's start to the end of its first step, without waiting
    WAITING = "waiting"  # waiting for the other workers: at the start, in a rescale, at the end
    RESCALE_UNWIND = "rescale_unwind"
    RESCALE_GROUP = "rescale_group"
    RESCALE_STATE = "rescale_state"
    RESCALE_WRAP = "rescale_wrap"
    RESCALE_FIRST_STEP = "rescale_first_step"
    LOST = "lost"  # steps that were begun and undone


STEADY = (Bucket.PRODUCTIVE, Bucket.DATA_WAIT)


class TimeAccount:
    """The time account of one worker. Not thread-safe: the training thread keeps it.

    Args:
        age: the seconds that the process had lived when this account was opened; they count as start-up.
    """

    def __init__(self, clock: Clock | None = None, *, age: float = 0.0) -> None:
        self._clock = clock or SystemClock()
        self._monotonic = self._clock.monotonic
        self._last = self._monotonic() - age
        self._wall_start = self._clock.wall() - age
        self._seconds = dict.fromkeys(Bucket, 0.0)
        self._before_step = 0.0
        """The productive seconds at the time when the running step was begun."""
        self.current = Bucket.STARTUP
        """The bucket to which time is charged from now on."""

    @property
    def started_at(self) -> float:
        """When the process was started, in seconds since the epoch."""
        return self._wall_start

    def charge(self, bucket: Bucket) -> None:
        """Charge the time since the last call to this bucket, which is known only now."""
        now = self._monotonic()
        self._seconds[bucket] += now - self._last
        self._last = now

    def enter(self, bucket: Bucket) -> Bucket:
        """Charge time from now on to this bucket; return the bucket before it."""
        former = self.current
        self.charge(former)
        self.current = bucket
        return former

    def data_wanted(self) -> None:
        """Note that the loop asks for the next batch.

        It is called for every batch, and takes two dictionary accesses and a look at the clock.
        """
        if self.current is Bucket.PRODUCTIVE:
            self.enter(Bucket.DATA_WAIT)

    def data_there(self) -> None:
        """Note that the batch has come."""
        if self.current is Bucket.DATA_WAIT:
            self.enter(Bucket.PRODUCTIVE)

    def step_begins(self) -> None:
        """Note that a step begins: all that was charged so far belongs to committed steps."""
        self._before_step = self._seconds[Bucket.PRODUCTIVE]

    def step_undone(self) -> None:
        """Note that the running step is rolled back: its time is lost."""
        lost = self._seconds[Bucket.PRODUCTIVE] - self._before_step
        self._seconds[Bucket.PRODUCTIVE] -= lost
        self._seconds[Bucket.LOST] += lost

    def of(self, bucket: Bucket) -> float:
        """Return the seconds charged to this bucket so far."""
        return self._seconds[bucket]

    def total(self) -> float:
        """Return the seconds charged to all buckets so far."""
        return sum(self._seconds.values())

    def wall(self) -> float:
        """Return the seconds since the start by the wall clock; the buckets go by the monotonic one."""
        return self._clock.wall() - self._wall_start

    def seconds(self) -> dict[str, float]:
        """Return the seconds up to now, by the bucket's name."""
        self.charge(self.current)
        return {bucket.value: round(seconds, 6) for bucket, seconds in self._seconds.items()}
