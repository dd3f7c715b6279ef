"""Takes a worker's snapshots: beside training while it goes on, and at once when the worker stops.

Rules that this file guards:

* training stands still only while what is no weight is copied; weights and optimizer state, which nothing but the next
  optimizer step changes, are copied by a thread while the next forward and backward run, and that step waits for it
  (`Staging`, which also finds out when something else changed them meanwhile);
* a snapshot that the writer has no time for is taken a few steps later, not waited for;
* whatever goes wrong with a snapshot is said, and training goes on.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.checkpoints.background import BackgroundWriter
from dtf_lightning.elastic.checkpoints.staging import (
    StagedState,
    Staging,
    StateChanged,
    optimizer_tensors,
    storages_of,
)
from dtf_lightning.elastic.data.random_state import take_random_state
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.snapshots.packing import pack
from dtf_lightning.errors import CheckpointError

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.restart_session import RestartSession

log = logging.getLogger("dtf_lightning")


class Snapshotter:
    """One worker's. `at_boundary` and `last` belong to the training thread."""

    def __init__(self, session: RestartSession) -> None:
        self._session = session
        self._staging = Staging()
        self._writer = BackgroundWriter()
        self._staged: StagedState | None = None
        """The copy that the next optimizer step waits for."""
        self._was_torn = False
        self._last_step: int | None = None
        self._failed = False

    def at_boundary(self, step: int) -> None:
        """Between two optimizer steps: take a snapshot if one is due."""
        session = self._session
        every = session.settings.snapshots.every_n_steps
        if self._last_step is None:
            self._last_step = step  # where this life began: there is a snapshot of it, or nothing to lose
        if every is None or self._failed or not session.writes_periodically:
            return
        # Due once a multiple was passed; at the next boundary if the writer is still busy with the one before.
        if step // every == self._last_step // every or self._writer.num_in_flight:
            return
        self._last_step = step
        staged = self._stage(steady=set() if self._was_torn else _steady(session.trainer))
        if staged is None:
            return
        header, self._staged = session.header("periodic"), staged

        def work() -> None:
            try:
                packed = pack(staged.read())
            except StateChanged as error:
                self._was_torn = True
                log.warning(
                    "the snapshot of step %d is given up: %s. From now on training waits for the copy", step, error
                )
            else:
                session.node.write(packed, header)

        self._writer.submit(work)

    def wait_until_copied(self) -> None:
        """Weights may change after this. Nearly always true already: an attribute read."""
        if self._staged is not None:
            self._staged.wait()
            self._staged = None

    def last(self, reason: str) -> None:
        """The worker stops: take a snapshot now, and return when it is written."""
        self.close()
        staged = self._stage(steady=set())
        if staged is not None:
            written = self._session.node.write(pack(staged.read()), self._session.header(reason))
            if written is not None:
                log.info("snapshot at step %d: %s", self._session.trainer.global_step, written)

    def close(self) -> None:
        """Wait until what is being written is there."""
        self.wait_until_copied()
        with suppress(CheckpointError, OSError):  # the writer has said it
            self._writer.flush()

    def _stage(self, *, steady: set[int]) -> StagedState | None:
        session = self._session
        try:
            state: dict[str, Any] = training_state.dump_state(session.trainer, session.progress)
            state |= {"random": take_random_state(), "run_began": session.run_began}
            return self._staging.begin(state, steady=steady)
        except Exception as error:  # the user's on_save_checkpoint, or something that cannot be pickled
            if not self._failed:
                self._failed = True
                log.exception("no snapshot can be taken of this training, it goes on without: %s", error)
            return None


def _steady(trainer: Any) -> set[int]:
    """What only an optimizer step changes, or nothing: frozen parameters as well."""
    return storages_of([*trainer.lightning_module.parameters(), *optimizer_tensors(trainer.optimizers)])
