"""`Rewind` takes a worker out of Lightning's loops: it leaves the interrupted step, drops the world, and undoes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.rewind import unwinding
from dtf_lightning.elastic.lightning.rewind.undo import Undo

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.reporting.run_log import RunLog
    from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress


class Rewind:
    """Rewind one worker; keeps the module's own `forward`, and what a step or a hook has changed."""

    def __init__(self) -> None:
        self.undo = Undo()
        self._trainer: Any = None
        self._forward: Any = None
        """The `forward` attribute of the module object; `None` where only its class has one."""

    def attach(self, trainer: Any) -> None:
        """Bind to the trainer that will fit, before its loops run."""
        self._trainer = trainer
        self._forward = trainer.lightning_module.__dict__.get("forward")

    def leave_loops(self, error: BaseException, *, keep_workers: bool) -> None:
        """Drop what belongs to the former world: frames, DDP, loaders. `keep_workers`: DataLoader workers stay alive."""
        unwinding.strip_tracebacks(error)
        unwinding.restore_module(self._trainer, self._forward)  # first, because a patched forward keeps DDP alive
        unwinding.unwrap_ddp(self._trainer)
        unwinding.drop_loaders(self._trainer, keep_workers=keep_workers)

    def roll_back(self, *, step: bool) -> None:
        """Restore what hooks that run again have changed, and what the unfinished `step` has, if it was rolled back."""
        if step:
            self.undo.undo_step(self._trainer)
        self.undo.roll_hooks_back(self._trainer)
        self.undo.keep_random_state()

    def agree_on_hooks(self, progress: TrainingProgress, run_log: RunLog, *, done: bool) -> None:
        """Go back before the first hooks of an epoch's end if they are done here, but not on all members (`done`)."""
        if progress.first_hooks_done and not done:
            progress.first_hooks_done = False
            self.undo.roll_first_hooks_back(self._trainer)
            run_log.drop(settled=True)
