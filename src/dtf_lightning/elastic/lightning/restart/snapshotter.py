"""`Snapshotter` takes a worker's snapshots: in the background while it trains, and at once when it stops.

Rules that this file guards:

* training stands still only while what is no weight is copied; weights and optimizer state, which nothing but the next
  optimizer step changes, are copied by a thread while the next forward and backward run, and that step waits for it
  (`AsyncSaver`, which also finds out when something else changed them meanwhile);
* a snapshot that the writer has no time for is taken a few steps later, not waited for;
* whatever goes wrong with a snapshot is said, and training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from dtf_lightning.elastic.checkpoints.async_saver import AsyncSaver
from dtf_lightning.elastic.snapshots.format import SnapshotHeader
from dtf_lightning.elastic.snapshots.node import NodeSnapshots
from dtf_lightning.elastic.snapshots.packing import pack
from dtf_lightning.errors import CheckpointError

log = logging.getLogger("dtf_lightning")


class Snapshotter:
    """Take the snapshots of one worker. `at_boundary` and `last` are called by the training thread.

    Args:
        dump: returns the current training state, whose tensors are references. May raise what the user's hooks raise.
        steady: returns the storages in it that only an optimizer step changes.
        header: returns the header of a snapshot that is taken now, for the given reason.
        node: stores the snapshots.
        every_n_steps: optimizer steps between two snapshots; `None`: only when the worker stops.
        at_start: whether the first boundary takes one; in a life that a snapshot began there is one already.
    """

    def __init__(
        self,
        dump: Callable[[], dict[str, Any]],
        steady: Callable[[], set[int]],
        header: Callable[[str], SnapshotHeader],
        node: NodeSnapshots,
        *,
        every_n_steps: int | None,
        at_start: bool = False,
    ) -> None:
        self._dump = dump
        self._steady = steady
        self._header = header
        self._node = node
        self._every = every_n_steps
        self._saver = AsyncSaver()
        self._last_step: int | None = -1 if at_start else None
        self._failed = False

    def at_boundary(self, step: int) -> None:
        """Take a snapshot if one is due, between two optimizer steps."""
        every = self._every
        if self._last_step is None:
            self._last_step = step  # of the position where this life began there is a snapshot, or nothing to lose
        if every is None or self._failed:
            return
        # Due once a multiple was passed; at the next boundary if the writer is still busy with the one before.
        if step // every == self._last_step // every or self._saver.num_in_flight:
            return
        self._last_step = step
        header = self._header("periodic")
        try:
            self._saver.save(
                self._dump(),
                self._steady,
                lambda copy: self._node.write(pack(copy), header),
                f"the snapshot of step {step}",
            )
        except Exception as error:  # the user's on_save_checkpoint, or something that cannot be pickled
            self._give_up(error)

    def wait_until_copied(self) -> None:
        """Weights may change after this. Nearly always true already: an attribute read."""
        self._saver.wait_until_copied()

    @property
    def idle(self) -> bool:
        """Whether no snapshot is being written."""
        return not self._saver.num_in_flight

    def last(self, reason: str, step: int, *, on_disk_too: bool = False) -> None:
        """Take a snapshot because the worker stops, and return when it is written.

        `on_disk_too`: into `run_dir` as well where it went to memory, for nodes that cannot read this one's memory.
        """
        self.close()
        try:
            copy = self._saver.copy(self._dump())
        except Exception as error:
            self._give_up(error)
            return
        written = self._node.write(pack(copy), self._header(reason), on_disk_too=on_disk_too)
        if written is not None:
            log.info("snapshot at step %d: %s", step, written)

    def close(self) -> None:
        """Wait until the snapshot that is being written is complete."""
        self.wait_until_copied()
        with suppress(CheckpointError, OSError):  # the writer has said it
            self._saver.flush()

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            log.error("no snapshot can be taken of this training, it goes on without: %s", error, exc_info=error)
