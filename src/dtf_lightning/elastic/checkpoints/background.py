"""Saves checkpoints while training goes on: a bounded queue, one thread, errors raised on the training thread."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from dtf_lightning.errors import CheckpointError, SettingsError

log = logging.getLogger("dtf_lightning")

Job = Callable[[], object]


class BackgroundWriter:
    """Runs jobs one after the other, in a thread that lives only while there are any jobs.

    The thread is no daemon: an interpreter that exits finishes the jobs first.

    Args:
        max_in_flight: the most jobs that are accepted and not yet done.
        timeout: seconds that any wait for the thread may take; must exceed the longest save.
    """

    def __init__(self, max_in_flight: int = 1, timeout: float = 3600.0) -> None:
        if max_in_flight < 1:
            raise SettingsError(f"max_in_flight={max_in_flight}: at least one save must be allowed")
        self.max_in_flight = max_in_flight
        self.timeout = timeout
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._num_in_flight = 0
        self._error: BaseException | None = None

    @property
    def num_in_flight(self) -> int:
        """The number of jobs that are accepted and not yet done."""
        return self._num_in_flight

    def reserve(self) -> None:
        """Wait until a job can be accepted. Raises an earlier job's error, or `CheckpointError` after the timeout."""
        self._wait(lambda: self._num_in_flight < self.max_in_flight)

    def submit(self, job: Job) -> None:
        """Accept a job, after waiting for room. Raises as `reserve`; the job is not accepted then."""
        self.reserve()
        with self._changed:
            self._jobs.append(job)
            self._num_in_flight += 1
            if self._num_in_flight == 1:
                threading.Thread(target=self._work, name="dtf-checkpoint-writer").start()

    def check(self) -> None:
        """Raise an earlier job's error, once, on this thread."""
        if self._error is not None:
            self._wait(lambda: True)

    def flush(self) -> None:
        """Wait until all jobs are done. Raises as `reserve`."""
        self._wait(lambda: self._num_in_flight == 0)

    def _wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            done = self._changed.wait_for(condition, self.timeout)
            error, self._error = self._error, None
        if error is not None:
            raise error
        if not done:
            raise CheckpointError(
                f"a checkpoint is still being written after {self.timeout:g} s; the storage hangs, or the timeout is "
                "shorter than a save"
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:
                # It is logged at once: a process that leaves the run, or is killed, does not ask for it any more.
                log.error("an asynchronous save failed: %s", error)
                self._error = self._error or error
            # The job holds the state: release it before the next job is accepted.
            del job
            with self._changed:
                self._num_in_flight -= 1
                last = not self._jobs
                self._changed.notify_all()
                if last:
                    return
