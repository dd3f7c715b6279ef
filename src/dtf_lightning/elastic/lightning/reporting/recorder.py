"""`RunRecorder` writes a worker's event log while it trains, with an account of its time.

It costs two readings of the clock per batch, and one line of the log every `trainer.log_every_n_steps` optimizer steps.

What is measured between two lines is the business of `step_meter.py` (steps) and of the time account.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.events import (
    ELASTIC_EVENTS,
    CheckpointPruned,
    CheckpointSaved,
    Evaluated,
    GenerationEntered,
    HardwareSeen,
    StepsDone,
    TimeSpent,
    TrainingDescribed,
    WorkerEnded,
    WorkerRescaled,
    WorkerStarted,
)
from dtf_lightning.elastic.lightning.host.logs import validation_results
from dtf_lightning.elastic.lightning.reporting.step_meter import DEFAULT_INTERVAL, StepMeter, finite
from dtf_lightning.elastic.link.messages import Welcome
from dtf_lightning.elastic.observe.time_account import Bucket, TimeAccount
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.events.log import EventLog, events_path
from dtf_lightning.events.registry import Event
from dtf_lightning.hardware.machine import describe_hardware, device_memory, process_age, resident_memory

if TYPE_CHECKING:
    import lightning.pytorch as pl

ACCOUNT_INTERVAL = 2.0
"""Seconds between two accounts of time; as much of a killed worker's time may be missing."""


@dataclass(frozen=True)
class Interruption:
    """Time that training stands still for something: since when, and to what time was charged before."""

    began: float
    """Monotonic seconds."""
    before: Bucket


class RunRecorder:
    """Write one worker's events. It is opened when the trainer is known; events before `open` are not written.

    `tell`: is called with important events, for the programs that watch the run.
    """

    def __init__(self, welcome: Welcome, local_rank: int, tell: Callable[[Event], object] = lambda _: None) -> None:
        self._tell = tell
        self.account = TimeAccount(age=process_age())
        self._welcome = welcome
        self._local_rank = local_rank
        self._log: EventLog | None = None
        self._generation = Generation(number=0)
        self._rank = 0
        self._steps = StepMeter(self.account)
        self._validation = Interruption(began=0.0, before=Bucket.PRODUCTIVE)
        self._described = False
        self._ended = False
        self._account_due = 0.0
        self._hardware: dict[str, Any] | None = None
        self._folder = Path()

    @property
    def every(self) -> int:
        """Number of optimizer steps between two samples."""
        return self._steps.interval

    def known_as(self, welcome: Welcome) -> None:
        """Set another name and incarnation of this worker, before `open`."""
        self._welcome = welcome

    # --- generations --------------------------------------------------------------------------------------------

    def open(self, folder: Path, trainer: pl.Trainer) -> None:
        """Write to `<folder>/events/` from now on; warn if the folder cannot be written."""
        welcome = self._welcome
        self._folder = folder
        self._steps.interval = max(1, int(getattr(trainer, "log_every_n_steps", 0) or DEFAULT_INTERVAL))
        self._log = EventLog(
            ELASTIC_EVENTS, events_path(folder, f"{welcome.node}.{self._local_rank}.{welcome.incarnation}")
        )
        self._write(
            WorkerStarted(
                **self._now(),
                run_id=welcome.run_id,
                node=welcome.node,
                local_rank=self._local_rank,
                incarnation=welcome.incarnation,
                pid=os.getpid(),
                host=socket.gethostname(),
                started_at=self.account.started_at,
                joiner=welcome.joiner,
            )
        )

    def entered(self, generation: Generation, rank: int, step: int, epoch: int) -> None:
        """Record that a generation is formed and this worker is part of it."""
        failed = tuple(failure.member for failure in generation.failures if failure.generation == generation.number - 1)
        self._generation, self._rank = generation, rank
        self._steps.stop()
        self._write(
            GenerationEntered(
                **self._now(),
                generation=generation.number,
                rescale=generation.kind,
                reason=generation.reason,
                members=tuple(member.id for member in generation.members),
                world_size=generation.world_size,
                rank=rank,
                incarnation=self._welcome.incarnation,
                step=step,
                epoch=epoch,
                formed_at=generation.formed_at,
                failed=failed,
                instance=generation.instance,
            )
        )
        if self._local_rank == 0:
            self._hardware = self._hardware or describe_hardware(
                {"run": self._folder}, packages=("lightning", "dtf-lightning")
            )
            self._write(
                HardwareSeen(
                    **self._now(), generation=generation.number, node=self._welcome.node, hardware=self._hardware
                )
            )

    def rescaled(self, *, step: int, pause: float, phases: dict[str, float], redrawn: bool) -> None:
        """Record the rescale, when the generation's first batch is done. `pause` and `phases` are in seconds."""
        generation = self._generation
        self._write(
            WorkerRescaled(
                **self._now(),
                generation=generation.number,
                rescale=generation.kind,
                reason=generation.reason,
                world_size=generation.world_size,
                rank=self._rank,
                step=step,
                pause=pause,
                phases=phases,
                redrawn=redrawn,
                incarnation=self._welcome.incarnation,
            )
        )
        self._write_account()

    def ended(self, reason: str, step: int) -> None:
        """Record once that this worker's part in the run is over."""
        if not self._ended:
            self._ended = True
            self._write_account()
            self._write(WorkerEnded(**self._now(), incarnation=self._welcome.incarnation, reason=reason, step=step))

    def close(self) -> None:
        """Close the event log. Idempotent."""
        if self._log is not None:
            self._log.close()

    # --- steps -------------------------------------------------------------------------------------------------------

    def batch_done(self, outputs: Any) -> None:
        """Keep the loss of a trained batch without reading it, because reading would wait for the device."""
        self._steps.keep_loss(outputs)

    def committed(self, trainer: pl.Trainer, samples: int) -> StepsDone | None:
        """Count a committed batch, of `samples` in the whole world. Return the sample of steps if one was due."""
        step = trainer.global_step
        self._steps.add(samples)
        if not self._steps.runs:
            if not self._described:
                self._described = True
                self._write(TrainingDescribed(**self._now(), description=describe_training(trainer)))
            self._steps.begin(step)
        elif self._steps.is_due(step):
            return self.sample(trainer)
        return None

    def sample(self, trainer: pl.Trainer, *, failing: bool = False) -> StepsDone | None:
        """Record and return the steps since the last sample; `None` if there are none.

        `failing`: a collective may hang on the device, so that the loss is left out: reading it waits for the device.
        """
        step = trainer.global_step
        stretch = self._steps.measure(step, reads_loss=not failing)
        if stretch is None:
            return None
        done = StepsDone(
            **self._now(),
            generation=self._generation.number,
            world_size=self._generation.world_size,
            rank=self._rank,
            epoch=trainer.current_epoch,
            step=step,
            steps=stretch.num_steps,
            seconds=stretch.seconds,
            samples=stretch.num_samples,
            data_wait=stretch.data_wait,
            loss=stretch.loss,
            lr=finite(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else None,
            rss=resident_memory(),
            device_memory=device_memory(trainer.strategy.root_device),
        )
        self._write(done)
        self._steps.begin(step)
        if time.monotonic() >= self._account_due:
            self._write_account()
        return done

    # --- validation and checkpoints ----------------------------------------------------------------------------------

    def validation_begins(self) -> None:
        """Charge time to the validation, until `validation_done`."""
        self._validation = self._interrupt(Bucket.VALIDATION)

    def validation_done(self, trainer: pl.Trainer) -> None:
        """Charge time as before the validation again; rank 0 records the results, except those of a sanity check."""
        self.account.enter(self._validation.before)
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._rank != 0:
            return
        results = validation_results(trainer)
        metrics = {name: number for name, value in results.items() if (number := finite(value)) is not None}
        self._write(
            Evaluated(
                **self._now(),
                generation=self._generation.number,
                epoch=trainer.current_epoch,
                step=trainer.global_step,
                seconds=time.monotonic() - self._validation.began,
                metrics=metrics,
            )
        )

    def checkpoint_begins(self) -> Interruption:
        """Charge time to the checkpoint; return what `checkpoint_done` takes."""
        return self._interrupt(Bucket.CHECKPOINT)

    def checkpoint_done(self, interruption: Interruption, trainer: pl.Trainer, path: str) -> None:
        """Charge time as before the checkpoint again; rank 0 records the checkpoint."""
        self.account.enter(interruption.before)
        if self._rank == 0:
            self._write(
                CheckpointSaved(
                    **self._now(),
                    generation=self._generation.number,
                    step=trainer.global_step,
                    epoch=trainer.current_epoch,
                    path=path,
                    seconds=time.monotonic() - interruption.began,
                    size=_size(Path(path)),
                )
            )

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Charge time inside the context to a checkpoint, which other code records."""
        interruption = self._interrupt(Bucket.CHECKPOINT)
        try:
            yield
        finally:
            self.account.enter(interruption.before)

    def checkpoint_pruned(self, trainer: pl.Trainer, path: str) -> None:
        if self._rank == 0:
            self._write(CheckpointPruned(**self._now(), step=trainer.global_step, path=path))

    # --- helpers ------------------------------------------------------------------------------------------------

    def _interrupt(self, bucket: Bucket) -> Interruption:
        return Interruption(began=time.monotonic(), before=self.account.enter(bucket))

    def _write_account(self) -> None:
        self._account_due = time.monotonic() + ACCOUNT_INTERVAL
        seconds = self.account.seconds()
        self._write(
            TimeSpent(
                **self._now(),
                generation=self._generation.number,
                incarnation=self._welcome.incarnation,
                wall=self.account.wall(),
                seconds=seconds,
            )
        )

    def _now(self) -> dict[str, Any]:
        return {"at": time.time(), "source": f"{self._welcome.node}/{self._local_rank}"}

    def happened(self, kind: Callable[..., Event], **fields: Any) -> None:
        """Record an event on rank 0, for all ranks, from its class and fields; adds source, time and generation."""
        if self._rank == 0:
            self._write(kind(**self._now(), generation=self._generation.number, **fields))

    def _write(self, event: Event) -> None:
        if self._log is not None:
            self._log.write(event)
        if event.kind in ELASTIC_EVENTS.important:
            self._tell(event)


def describe_training(trainer: pl.Trainer) -> dict[str, Any]:
    """Return what is trained and how, for the head of a report."""
    module = trainer.lightning_module
    batches = getattr(trainer.strategy, "run").batches  # noqa: B009  only the elastic strategy has one
    sampler = batches.sampler
    return {
        "model": type(module).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
        "dataset_size": batches.num_samples,
        "batch_size": batches.batch_size if sampler is not None else None,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
        "device": str(trainer.strategy.root_device),
        "max_epochs": trainer.max_epochs,
        "max_steps": trainer.max_steps,
        "script": sys.argv[0],
    }


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 if it cannot be read."""
    try:
        return sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    except OSError:
        return 0
