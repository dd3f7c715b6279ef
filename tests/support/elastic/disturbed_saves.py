"""`BestCheckpoints` whose writer dies, or hangs, in the middle of a save."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.testkit.faults import HOLD_TIMEOUT
from support.elastic.checkpoint_disks import Counting

STEP = 8
"""The save of this step is the disturbed one."""

AGAIN = 2000
"""After a save that hangs there is none until this step."""


class DisturbedCheckpoints(BestCheckpoints):
    def __init__(self, folder: Path, dies_at: tuple[str, int] | None, waits: str, **kwargs) -> None:
        super().__init__("loss_step", best=1, recent=1, on_validation=False, dirpath=folder / "saved", **kwargs)
        self._place, self._waits = folder, waits
        self._name, self._left = dies_at or ("", 0)
        opened = self._saver._open

        def disturbed(run: str) -> CheckpointFolder:
            folder = opened(run)
            folder.storage._do = Counting(self._meet)
            return folder

        self._saver._open = disturbed

    @property
    def state_key(self) -> str:
        return "BestCheckpoints"

    def _save(self, trainer, metrics) -> None:
        if trainer.global_step == STEP:
            self._saver.flush()  # or the save before it would be taken for it
        # A second save would wait for the first, and all ranks with it.
        if not self._waits or trainer.global_step <= STEP or trainer.global_step > AGAIN:
            super()._save(trainer, metrics)

    def _meet(self, _: int, name: str) -> None:
        if self._last is None or self._last[0] != STEP:
            return
        if self._waits and name == "write":
            (self._place / "waiting").touch()
            poll_until((self._place / self._waits).exists, HOLD_TIMEOUT, f"the file {self._waits}")
        if name == self._name:
            self._left -= 1
            if self._left == 0 and not (self._place / "died").exists():
                (self._place / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)


def disturbed_checkpoints(folder, every, asynchronous, dies_at, waits) -> DisturbedCheckpoints:
    return DisturbedCheckpoints(folder, dies_at, waits, every_n_steps=every, asynchronous=asynchronous)
