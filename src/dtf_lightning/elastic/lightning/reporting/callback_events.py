"""These functions let callbacks that also work without an elastic run write to the event log of one."""

from __future__ import annotations

import time
from collections.abc import Iterator
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


class CheckpointEvents:
    """What the event log is told of the checkpoints that a callback keeps, by rank 0.

    Of an asynchronous save it learns with the next one, or at the end.
    """

    def __init__(self) -> None:
        self._told: tuple[Record, ...] = ()
        self._stalls: dict[int, float] = {}
        """Seconds that training stood still, by step; of saves that the log has not been told of."""

    @contextmanager
    def saving(self, trainer: pl.Trainer) -> Iterator[None]:
        """Inside, training stands still for a checkpoint of the present step."""
        began = time.monotonic()
        with stall(trainer):
            yield
        self._stalls[trainer.global_step] = time.monotonic() - began

    def tell(self, trainer: pl.Trainer, records: tuple[Record, ...], location: str) -> None:
        """These are kept now: what is new, and what is gone."""
        before, self._told = self._told, records
        recorder = recorder_of(trainer)
        if recorder is None:
            return
        known = {record.name for record in before}
        kept = {record.name for record in records}
        for record in records:
            # Not those of a run that is resumed.
            if record.name not in known and record.saved_at >= recorder.account.started_at:
                recorder.happened(
                    CheckpointSaved,
                    step=record.step,
                    epoch=record.epoch,
                    path=f"{location.rstrip('/')}/{record.name}",
                    seconds=self._stalls.pop(record.step, 0.0),
                    size=record.size,
                )
        for record in before:
            if record.name not in kept:
                recorder.checkpoint_pruned(trainer, f"{location.rstrip('/')}/{record.name}")
