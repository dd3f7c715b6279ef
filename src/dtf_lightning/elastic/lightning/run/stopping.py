"""These functions tell people why a worker has left the training loop, or an epoch before its end."""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.lightning.host.loops import stops_early
from dtf_lightning.elastic.lightning.host.names import EarlyStopping


def why_stopped_early(trainer: Any) -> str | None:
    """Return why training ends before its time; `None` if it does not."""
    if not stops_early(trainer):
        return None
    stoppers = [
        f"{type(callback).__name__}(monitor={callback.monitor!r})"
        for callback in trainer.callbacks
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience
    ]
    return f"trainer.should_stop was set{' by ' + ', '.join(stoppers) if stoppers else ''}"


def why_stopped(trainer: Any) -> str:
    """Return why training ends here."""
    return why_stopped_early(trainer) or "training came to its end"


def why_cut_short(trainer: Any) -> str | None:
    """Return why an epoch whose batches are done has ended before its loaders; `None` if they had no more.

    Where they had no more either, there may be a reason all the same.
    """
    batches = trainer.fit_loop.epoch_loop.batch_progress.current
    if batches.ready > batches.completed:
        return "on_train_batch_start returned -1"
    limit = trainer.limit_train_batches  # the number 1 is one batch, 1.0 is all of them
    if (isinstance(limit, int) or limit < 1.0) and batches.ready >= trainer.num_training_batches:
        return _limit(trainer)
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return f"max_steps={trainer.max_steps}"
    return why_stopped_early(trainer)


def _limit(trainer: Any) -> str:
    if trainer.fast_dev_run:
        return f"fast_dev_run={trainer.fast_dev_run}"
    if trainer.overfit_batches:
        return f"overfit_batches={trainer.overfit_batches}"
    return f"limit_train_batches={trainer.limit_train_batches}"
