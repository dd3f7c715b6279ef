"""Saves copies of a state beside training: what checkpoints and snapshots share.

Rules that this file guards:

* training stands still only while what is no weight is copied; what only an optimizer step changes is copied by a thread
  while the next forward and backward pass run, and that step waits for it (`wait_until_copied`);
* a torn copy is given up, said, and remembered: from then on everything is copied at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

from dtf_lightning.elastic.checkpoints.background import BackgroundWriter, Job
from dtf_lightning.elastic.checkpoints.staging import StagedState, Staging, StateChanged

log = logging.getLogger("dtf_lightning")


class AsyncSaver:
    """Copies a state and writes the copy in a thread. Its methods belong to the training thread.

    Args:
        max_in_flight: saves accepted and not yet done; each holds a copy of the state in host memory.
    """

    def __init__(self, max_in_flight: int = 1) -> None:
        self._writer = BackgroundWriter(max_in_flight)
        self._stagings = [Staging() for _ in range(max_in_flight)]
        self._num_saves = 0
        self._copying: StagedState | None = None
        """The last copy, as long as it may be unfinished."""
        self._was_torn = False

    @property
    def staged_bytes(self) -> int:
        """Host memory that the copies hold."""
        return sum(staging.num_bytes for staging in self._stagings)

    @property
    def num_in_flight(self) -> int:
        """Saves accepted and not yet done."""
        return self._writer.num_in_flight

    def save(
        self, state: Any, steady: Callable[[], Collection[int]], write: Callable[[Any], object], what: str
    ) -> None:
        """Copy the state and write the copy beside training; waits until a save can be accepted.

        Args:
            steady: addresses of the storages that only an optimizer step changes (`staging.storages_of`).
            write: is given the copy, on the thread.
            what: for the warning, when the copy is torn and given up.

        Raises an earlier save's error, `CheckpointError` when none can be accepted for too long, and whatever pickling
        the state raises.
        """
        self.wait_until_copied()
        self._writer.reserve()
        staging = self._stagings[self._num_saves % len(self._stagings)]
        staged = self._copying = staging.begin(state, steady=() if self._was_torn else steady())
        self._num_saves += 1

        def job() -> None:
            try:
                copy = staged.read()
            except StateChanged as error:
                self._was_torn = True
                log.warning("%s is given up: %s. From now on training waits for the copy.", what, error)
            else:
                write(copy)

        self._writer.submit(job)

    def submit(self, job: Job) -> None:
        """Do this on the thread, after what was saved before. Raises as `save`."""
        self.wait_until_copied()
        self._writer.submit(job)

    def copy(self, state: Any) -> Any:
        """A copy made at once, valid until the next save; only when nothing is in flight."""
        assert not self.num_in_flight
        return self._stagings[0].copy(state)

    def wait_until_copied(self) -> None:
        """The state may change after this. Nearly always true already: an attribute read."""
        if self._copying is not None:
            self._copying.wait()
            self._copying = None

    def check(self) -> None:
        """Raise an earlier save's error, once."""
        self._writer.check()

    def flush(self) -> None:
        """Wait until all is written. Raises an earlier save's error, `CheckpointError` after too long."""
        self.wait_until_copied()
        self._writer.flush()
