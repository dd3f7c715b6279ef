"""These functions let callbacks that also work without an elastic run write to the event log of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.events import CheckpointSaved

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder


def recorder_of(trainer: pl.Trainer) -> RunRecorder | None:
    """Return the recorder of the trainer's elastic run; `None` outside of one."""
    run: Any = getattr(trainer.strategy, "run", None)
    return run.recorder if run is not None else None


@contextmanager
def stall(trainer: pl.Trainer) -> Iterator[None]:
    """Count the time inside the context as spent on a checkpoint."""
    recorder = recorder_of(trainer)
    if recorder is None:
        yield
        return
    with recorder.checkpoint():
        yield


def tell_checkpoints(
    trainer: pl.Trainer,
    before: Sequence[Record],
    now: Sequence[Record],
    stalls: dict[int, float],
    location: str,
) -> None:
    """Log which checkpoints of `BestCheckpoints` are new and which are removed. `stalls`: seconds of waiting, by step."""
    recorder = recorder_of(trainer)
    if recorder is None:
        return
    known = {record.name for record in before}
    kept = {record.name for record in now}
    for record in now:
        if record.name not in known and record.saved_at >= recorder.account.started_at:  # not of a run that is resumed
            recorder.happened(
                CheckpointSaved,
                step=record.step,
                epoch=record.epoch,
                path=f"{location.rstrip('/')}/{record.name}",
                seconds=stalls.pop(record.step, 0.0),
                size=record.size,
            )
    for record in before:
        if record.name not in kept:
            recorder.checkpoint_pruned(trainer, f"{location.rstrip('/')}/{record.name}")
