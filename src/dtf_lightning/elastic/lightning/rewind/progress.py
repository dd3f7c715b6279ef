"""`TrainingProgress` tracks a worker's position in the epoch, and corrects Lightning's loop counters to it.

Rules that this file guards:

* a step is committed when its optimizer stepped; what came after it (a callback, a validation) runs again or not at all,
  and what came before it (micro-batches of an accumulation) is rolled back to the last optimizer step;
* after `settle` the batch counters are what Lightning itself has at that position: ready = started = processed =
  completed;
* the cursor of the data counts samples of committed steps only;
* the epochs that begin with new loaders (`reload_dataloaders_every_n_epochs`) are those of an undisturbed run, although a
  rescale makes loaders anew in between.

Private API read and written here: the `*_progress` counters of `_FitLoop`, `_TrainingEpochLoop` and its optimization
loop, `_batches_that_stepped`, `_skip_next_val`, the logger connector's `on_batch_end`, `update_train_step_metrics`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from dtf_lightning.elastic.lightning.host.logs import end_step
from dtf_lightning.elastic.lightning.host.loops import (
    all_batches_begun,
    clear_restart_flags,
    loaders_epoch,
    logged_step,
    set_loaders_epoch,
    set_logged_step,
    skip_next_validation,
)
from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING, rank_zero_warn
from dtf_lightning.elastic.rules.resume import LoopPhase, Position

if TYPE_CHECKING:
    import lightning.pytorch as pl


class DataPosition(Protocol):
    """Describe the part of the data position that sample counts do not tell: shards, streams, several loaders."""

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position, or `None` where there is none to describe."""

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Adopt the position that another worker's `state_dict` describes."""


@dataclass(frozen=True, kw_only=True)
class StepBoundary:
    """Hold the counters at the last optimizer-step boundary."""

    batches_total: int
    batches_in_epoch: int
    consumed: int
    """Number of the epoch's samples that the whole world had consumed."""
    global_step: int
    loaders_epoch: int | None = None
    """The last epoch that began with new loaders of its own; `None` in checkpoints that do not have it."""


@dataclass(frozen=True, kw_only=True)
class EpochEnd:
    """Hold the counters at the end of an epoch, before its hooks ran."""

    processed_total: int
    processed: int
    batches_that_stepped: int


class TrainingProgress:
    """Track one worker's position in the epoch, from calls by its loops at every step."""

    def __init__(self) -> None:
        self.phase = LoopPhase.EPOCH_START
        self.consumed = 0
        self.boundary: StepBoundary | None = None
        self.epoch_end: EpochEnd | None = None
        self.trained = False
        """Whether this worker has been part of a generation that began to train."""
        self.resuming = False
        """Whether the next pass through the epoch loop continues at a position, instead of starting an epoch."""
        self.ended = False
        """Whether training had come to its end before this worker was started: `fit` takes the state, and trains nothing."""
        self.loaded: dict[str, Any] | None = None
        """Position in the checkpoint that Lightning has loaded; `None` without a checkpoint of an elastic run."""
        self.first_hooks_done = False
        """Whether the first hooks of the epoch's end, up to the module's own, are done and are not to run again."""
        self.stepped = False
        """Whether weights have changed since the boundary, even if Lightning's counters do not show it yet."""
        self.scheduler_steps: list[int | None] = []
        """How often each scheduler had stepped at the last boundary; `None` for one that does not say."""
        self.batch_samples = 0
        """Number of samples that the whole world consumes per batch."""
        self.dataset_size = 0
        self.data: DataPosition | None = None
        self.first_step = 0
        """Number of samples in an optimizer step of the run's first generation; 0 while unknown."""

    # --- called by the loops -------------------------------------------------------------------------------------------

    def at_step_boundary(self, trainer: pl.Trainer) -> None:
        self.stepped = False
        self.scheduler_steps = _scheduler_steps(trainer)
        batches = trainer.fit_loop.epoch_loop.batch_progress
        self.boundary = StepBoundary(
            batches_total=batches.total.completed,
            batches_in_epoch=batches.current.completed,
            consumed=self.consumed,
            global_step=trainer.global_step,
            loaders_epoch=loaders_epoch(trainer),
        )

    def no_step_open(self, trainer: pl.Trainer) -> bool:
        """Tell whether the optimizer has stepped since the last boundary, so that nothing would be rolled back."""
        return self.boundary is None or trainer.global_step > self.boundary.global_step

    def boundary_here(self, trainer: pl.Trainer) -> bool:
        """Tell whether no batch is done since the last boundary, so that the current one is a step's first."""
        done = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return self.boundary is not None and done == self.boundary.batches_total

    def batch_done(self) -> None:
        self.consumed = min(self.dataset_size, self.consumed + self.batch_samples)
        self.phase = LoopPhase.ADVANCE_END

    def loader_of_generation_made(self, trainer: pl.Trainer) -> None:
        """Count the loaders that a rescale has made, or the rest of an epoch after one, as none of an epoch's own."""
        if self.boundary is not None and self.boundary.loaders_epoch is not None:
            set_loaders_epoch(trainer, self.boundary.loaders_epoch)

    def epoch_batches_done(self, trainer: pl.Trainer) -> None:
        epochs: Any = trainer.fit_loop.epoch_progress
        self.phase = LoopPhase.EPOCH_END
        self.epoch_end = EpochEnd(
            processed_total=epochs.total.processed,
            processed=epochs.current.processed,
            batches_that_stepped=logged_step(trainer),
        )

    def epoch_done(self) -> None:
        self.consumed = 0
        self.first_hooks_done = False
        self.phase = LoopPhase.EPOCH_START

    # --- compared and moved ------------------------------------------------------------------------------------------

    def position(self, trainer: pl.Trainer) -> Position:
        epoch_loop = trainer.fit_loop.epoch_loop
        return Position(
            trained=self.trained,
            global_step=epoch_loop.global_step,
            batches_total=epoch_loop.batch_progress.total.completed,
            phase=self.phase,
            samples=self.consumed,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "phase": self.phase.value,
            "consumed": self.consumed,
            "batch_samples": self.batch_samples,
            "dataset_size": self.dataset_size,
            "first_step": self.first_step,
            "data": self.data.state_dict() if self.data is not None else None,
            "boundary": asdict(self.boundary) if self.boundary else None,
            "epoch_end": asdict(self.epoch_end) if self.epoch_end else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.phase = LoopPhase(state["phase"])
        self.consumed, self.stepped = state["consumed"], False
        self.batch_samples, self.dataset_size = state["batch_samples"], state["dataset_size"]
        self.first_step = state.get("first_step", 0)  # checkpoints before 0.1.0 do not have it
        if self.data is not None:
            self.data.load_state_dict(state.get("data"))
        self.boundary = StepBoundary(**state["boundary"]) if state["boundary"] else None
        self.epoch_end = EpochEnd(**state["epoch_end"]) if state["epoch_end"] else None

    def go_to_loaded(self, trainer: pl.Trainer) -> None:
        """Continue at the exact sample of the checkpoint that was loaded, as a survivor of a rescale would."""
        if self.loaded is None:
            return
        self.load_state_dict(self.loaded)
        self.skip_hooks_of_checkpoint(trainer, validated=self.loaded["validated"])
        self.settle(trainer)
        clear_restart_flags(trainer.fit_loop)

    def batches_of_unknown_samples(self, trainer: pl.Trainer) -> int:
        """Return how many of the epoch's batches a loaded checkpoint has done without saying which samples they held.

        That is one of plain Lightning's in mid-epoch; 0 for any other, and where nothing was loaded.
        """
        batches: Any = trainer.fit_loop.epoch_loop.batch_progress
        if self.trained or self.loaded is not None or batches.is_last_batch:
            return 0
        return int(batches.current.processed)

    @property
    def pending(self) -> bool:
        """Whether the current epoch is to be finished even if Lightning's counters say that it is done."""
        return self.resuming and self.phase is not LoopPhase.EPOCH_START

    def skip_hooks_of_checkpoint(self, trainer: pl.Trainer, *, validated: bool) -> None:
        """Skip the hooks that had run when the loaded checkpoint was saved: last hooks of an epoch or of a validation.

        As in plain Lightning, they do not run again on resuming, because callbacks would count them twice.
        """
        fit_loop: Any = trainer.fit_loop
        if self.phase is LoopPhase.ADVANCE_END and validated:
            skip_next_validation(trainer)
        if self.phase is LoopPhase.EPOCH_END:
            assert self.epoch_end is not None
            epochs = fit_loop.epoch_progress
            epochs.total.completed, epochs.current.completed = (
                self.epoch_end.processed_total + 1,
                self.epoch_end.processed + 1,
            )
            set_logged_step(trainer, self.epoch_end.batches_that_stepped)
            self.epoch_done()

    def settle(self, trainer: pl.Trainer) -> bool:
        """Set the counters to the last committed position; return whether an unfinished step was rolled back.

        Called after an exception has left the loops, at any place.
        """
        fit_loop: Any = trainer.fit_loop
        epoch_loop = fit_loop.epoch_loop
        rolled_back = self._settle_batch(epoch_loop)
        epochs, batches = fit_loop.epoch_progress, epoch_loop.batch_progress
        if self.phase is LoopPhase.EPOCH_END:
            assert self.epoch_end is not None
            epochs.total.processed = epochs.total.completed = self.epoch_end.processed_total
            epochs.current.processed = epochs.current.completed = self.epoch_end.processed
            set_logged_step(trainer, self.epoch_end.batches_that_stepped)
        if self.phase is LoopPhase.EPOCH_START:
            for tracker in (epochs.total, epochs.current):
                tracker.ready = tracker.started = tracker.processed = tracker.completed
            batches.reset_on_run()
        else:
            for tracker in (epochs.total, epochs.current):
                tracker.processed = tracker.completed
                tracker.ready = tracker.started = tracker.completed + 1
        optimizer = epoch_loop.automatic_optimization.optim_progress.optimizer
        for counter in (optimizer.step.total, optimizer.step.current):
            counter.ready = counter.completed
        for counter in (optimizer.zero_grad.total, optimizer.zero_grad.current):
            counter.ready = counter.started = counter.completed
        for counter in (epoch_loop.scheduler_progress.total, epoch_loop.scheduler_progress.current):
            counter.ready = counter.completed
        epoch_loop.val_loop.batch_progress.reset()
        return rolled_back

    def _settle_batch(self, epoch_loop: Any) -> bool:
        """Count an interrupted batch as done if its optimizer stepped; otherwise go back to the last step boundary."""
        if self.boundary is None or self.phase not in (LoopPhase.BATCH, LoopPhase.ADVANCE_END):
            return False
        batches = epoch_loop.batch_progress
        if self.stepped and epoch_loop.global_step == self.boundary.global_step:
            steps = epoch_loop.automatic_optimization.optim_progress.optimizer.step
            steps.increment_completed()  # the weights have changed, but something raised before Lightning counted it
        stepped = epoch_loop.global_step > self.boundary.global_step
        if self.phase is LoopPhase.ADVANCE_END and stepped:
            return False
        if stepped:
            total, current = batches.total.ready, batches.current.ready
            if batches.total.completed < total:
                _catch_up(epoch_loop, self.scheduler_steps)
            self.batch_done()
        else:
            total, current = self.boundary.batches_total, self.boundary.batches_in_epoch
            begun = batches.total.ready > total
            self.consumed = self.boundary.consumed
            batches.is_last_batch = False
            self.phase = LoopPhase.BATCH
        for tracker, count in ((batches.total, total), (batches.current, current)):
            tracker.ready = tracker.started = tracker.processed = tracker.completed = count
        return not stepped and begun


def warn_of_unknown_samples(trainer: pl.Trainer, batches: int) -> None:
    """Warn, on rank 0, that an epoch goes on from a checkpoint that does not say which of its samples are done."""
    rank_zero_warn(
        f"the checkpoint that is resumed from was saved by plain Lightning after {batches} batches of epoch "
        f"{trainer.current_epoch}, and does not say which samples they held. As in plain Lightning, the rest of the epoch "
        f"has {batches} batches less than a whole one and begins with the first samples of its order: samples may be trained "
        "twice in this epoch, and as many at its end not at all. A checkpoint of an epoch's end, or one that was "
        "saved with ElasticCallback, resumes at the exact sample."
    )


def _scheduler_steps(trainer: pl.Trainer) -> list[int | None]:
    return [getattr(config.scheduler, "last_epoch", None) for config in trainer.lr_scheduler_configs]


def _update_schedulers(epoch_loop: Any) -> None:
    epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=False)
    if all_batches_begun(epoch_loop):
        epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)


def _finish_schedulers(epoch_loop: Any, before: list[int | None]) -> None:
    """Update those schedulers that an interrupted update has not come to, or has been interrupted in.

    Args:
        before: how often each had stepped at the last boundary. One that does not say is left as it is.
    """
    strategy = epoch_loop.trainer.strategy
    configs = strategy.lr_scheduler_configs
    now = _scheduler_steps(epoch_loop.trainer)
    if len(before) != len(now):
        return
    behind = [config for config, old, new in zip(configs, before, now, strict=True) if old is not None and old == new]
    strategy.lr_scheduler_configs = behind
    try:
        _update_schedulers(epoch_loop)
    finally:
        strategy.lr_scheduler_configs = configs


def _catch_up(epoch_loop: Any, scheduler_steps: list[int | None]) -> None:
    """Do what Lightning would have done after the optimizer step that was interrupted.

    Batch-end hooks are not called, because some may have run already and would count the batch twice. An average of
    weights is the exception: without it the members' averages would drift apart.
    """
    updates = epoch_loop.scheduler_progress.total
    if epoch_loop.batch_progress.total.processed < epoch_loop.batch_progress.total.ready:
        _update_schedulers(epoch_loop)
    elif updates.completed < updates.ready:
        _finish_schedulers(epoch_loop, scheduler_steps)
    trainer = epoch_loop.trainer
    for callback in trainer.callbacks:
        if isinstance(callback, WEIGHT_AVERAGING):  # averages each step once, however often it is called
            callback.on_train_batch_end(trainer, trainer.lightning_module, None, None, epoch_loop.batch_idx)
    end_step(trainer)
