"""Takes a worker's snapshots: beside training while it goes on, and at once when the worker stops.

Rules that this file guards:

* training stands still only while what is no weight is copied; weights and optimizer state, which nothing but the next
  optimizer step changes, are copied by a thread while the next forward and backward run, and that step waits for it;
* a snapshot that the writer has no time for is left out, not waited for;
* whatever goes wrong with a snapshot is said, and training goes on.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning.errors import CheckpointError
from dtf_lightning.lightning import state as training_state
from dtf_lightning.training.checkpoints.background import BackgroundWriter
from dtf_lightning.training.checkpoints.staging import Staged, Staging
from dtf_lightning.training.random_state import take_random_state

if TYPE_CHECKING:
    from dtf_lightning.lightning.restart_session import RestartSession

log = logging.getLogger("dtf_lightning")


class Snapshotter:
    """One worker's. `at_boundary` and `last` belong to the training thread."""

    def __init__(self, session: RestartSession) -> None:
        self._session = session
        self._staging = Staging()
        self._writer = BackgroundWriter()
        self._copied = threading.Event()
        self._copied.set()
        self._last_step: int | None = None
        self._failed = False
        self.num_left_out = 0
        """Snapshots that came due while the one before was still being written."""

    def at_boundary(self, step: int) -> None:
        """Between two optimizer steps: take a snapshot if one is due."""
        session = self._session
        every = session.settings.snapshots.every_n_steps
        first, self._last_step = self._last_step is None, step if self._last_step is None else self._last_step
        if every is None or first or self._failed or not session.writes_periodically:
            return
        if step % every or step == self._last_step:
            return
        self._last_step = step
        if self._writer.num_in_flight:
            self.num_left_out += 1
            log.debug("the snapshot of step %d is left out: the one before is still being written", step)
            return
        staged = self._stage(deferred=_storages_of_the_step(session.trainer))
        if staged is None:
            return
        header = session.header("periodic")
        self._copied.clear()

        def work() -> None:
            try:
                staged.finish()
            finally:
                self._copied.set()
            session.node.write(staged, header)

        self._writer.submit(work)

    def wait_until_copied(self) -> None:
        """Weights may change after this. Nearly always true already: an attribute read."""
        if not self._copied.is_set():
            self._copied.wait()

    def last(self, reason: str) -> None:
        """The worker stops: take a snapshot now, and return when it is written."""
        self.close()
        staged = self._stage(deferred=set())
        if staged is not None:
            written = self._session.node.write(staged, self._session.header(reason))
            if written is not None:
                log.info("snapshot at step %d: %s", self._session.trainer.global_step, written)

    def close(self) -> None:
        """Wait until what is being written is there."""
        self.wait_until_copied()
        with suppress(CheckpointError, OSError):  # the writer has said it
            self._writer.flush()

    def _stage(self, *, deferred: set[int]) -> Staged | None:
        session = self._session
        try:
            state: dict[str, Any] = training_state.dump_state(session.trainer, session.progress)
            state["random"] = take_random_state()
            return self._staging.stage(state, lambda storage: storage.data_ptr() in deferred)
        except Exception as error:  # the user's on_save_checkpoint, or something that cannot be pickled
            if not self._failed:
                self._failed = True
                log.exception("no snapshot can be taken of this training, it goes on without: %s", error)
            return None


def _storages_of_the_step(trainer: Any) -> set[int]:
    """Addresses of what only an optimizer step changes: parameters and the optimizers' tensors."""
    tensors = list(trainer.lightning_module.parameters())
    for optimizer in trainer.optimizers:
        for state in optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}
