"""What callbacks that work without an elastic run, too, tell the event log of one."""

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
    """The recorder of the elastic run that the trainer is in; `None` outside of one."""
    run: Any = getattr(trainer.strategy, "run", None)
    return run.recorder if run is not None else None


@contextmanager
def stall(trainer: pl.Trainer) -> Iterator[None]:
    """Inside, training stands still for a checkpoint."""
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
    """What of `BestCheckpoints`' is new, and what is gone. `stalls`: seconds that training stood still, by step."""
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
