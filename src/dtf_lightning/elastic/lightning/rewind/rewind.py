"""The way back out of Lightning's loops, in order: leave the interrupted step, let go of the world, undo."""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.lightning.rewind import unwinding
from dtf_lightning.elastic.lightning.rewind.undo import Undo


class Rewind:
    """One worker's; knows the module as the user made it, and what a step or a hook has changed."""

    def __init__(self) -> None:
        self.undo = Undo()
        self._trainer: Any = None
        self._forward: Any = None
        """The module's own `forward` attribute; `None` where its class has it."""

    def attach(self, trainer: Any) -> None:
        """The trainer that will fit is known; its loops have not run."""
        self._trainer = trainer
        self._forward = trainer.lightning_module.__dict__.get("forward")

    def leave_loops(self, error: BaseException, *, keep_workers: bool) -> None:
        """Nothing of the former world is held any more: frames, DDP, loaders. `keep_workers`: DataLoader's live on."""
        unwinding.strip_tracebacks(error)
        unwinding.restore_module(self._trainer, self._forward)  # first: a patched forward holds DDP alive
        unwinding.unwrap_ddp(self._trainer)
        unwinding.drop_loaders(self._trainer, keep_workers=keep_workers)

    def roll_back(self, *, step: bool) -> None:
        """What is done again finds everything as it was: hooks, and the `step` in flight if it was rolled back."""
        if step:
            self.undo.roll_step_back(self._trainer)
        self.undo.roll_hooks_back(self._trainer)
        self.undo.keep_random_state()
