"""`Reporter` passes a worker's progress to the event log, the ledger, the user's loggers, the bar and the terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dtf_lightning.elastic.data.left_out import left_out
from dtf_lightning.elastic.lightning.data.running_batches import RunningBatches
from dtf_lightning.elastic.lightning.host.callbacks import measure_throughput
from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.reporting.elastic_scalars import ElasticScalars, rescale_text
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.reporting.run_log import RunLog
from dtf_lightning.elastic.lightning.reporting.straggler_probe import Pace
from dtf_lightning.elastic.lightning.reporting.tensorboard_log import RESCALES
from dtf_lightning.elastic.lightning.rewind.training_state import dump_start
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.observe.ledger import Ledger
from dtf_lightning.elastic.observe.pause_clock import PauseClock
from dtf_lightning.elastic.observe.time_account import Bucket
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.resume import LoopPhase

log = logging.getLogger("dtf_lightning")


class Reporter:
    """Report on one worker. Nothing is reported before `open`."""

    def __init__(self, recorder: RunRecorder) -> None:
        self.recorder = recorder
        self.run_log = RunLog()
        self.clock = PauseClock(account=recorder.account)
        self.pace = Pace(recorder)
        self._scalars = ElasticScalars(recorder.account)
        self._trainer: Any = None
        self._folder = Path()
        self._ledger: Ledger | None = None
        self._unreported: list[Generation] = []
        """Generations entered since the last committed batch: usually one or none."""
        self._rolled_back = False
        """Whether the last rescale rolled a step back, whose samples are drawn again."""

    @property
    def records_samples(self) -> bool:
        """Whether the ledger records each drawn sample."""
        return self._ledger is not None

    def open(self, trainer: Any, folder: Path, ledger_name: str | None) -> None:
        """Open the event log in `folder`, and a ledger there if it has a name; bind to the trainer that will fit."""
        self._trainer, self._folder = trainer, folder
        self.recorder.open(folder, trainer)
        self.run_log.attach(trainer)
        if ledger_name is not None:
            self._ledger = Ledger(folder / "ledger" / f"{ledger_name}.jsonl")

    def resume_logs(self) -> None:
        """Continue the logs that the run had begun, because it resumes from a checkpoint."""
        if self._trainer is not None:
            self.run_log.resume(self._trainer, self._folder)

    # --- generations -------------------------------------------------------------------------------------------------

    def take_rank_zero(self, world: World, former: World, phase: LoopPhase) -> None:
        """Take over the tasks of the former rank 0 if this worker is rank 0 now. `former`: this worker's former place."""
        if world.rank != 0:
            return
        number, former_number = world.generation.number, former.generation.number
        if former_number == 0 and number > 1:  # all workers that trained before are gone
            self.run_log.resume(self._trainer, self._folder)
        if self.run_log.resumed or (former.rank != 0 and number > 1):
            self.run_log.take_over(self._trainer, phase)
            if former.rank != 0 and former_number > 0:
                progress_bars.take_over(self._trainer, in_epoch=phase is not LoopPhase.EPOCH_START)
                measure_throughput(self._trainer, took_over=True)
        if former.rank != 0 or former_number == 0:
            self.run_log.remember(self._folder, dump_start(self._trainer))

    def entered(self, world: World) -> None:
        """Report that a generation is formed and this worker is about to train in it."""
        step, epoch = self._trainer.global_step, self._trainer.current_epoch
        if self._ledger is not None:
            self._ledger.begin(
                generation=world.generation.number,
                rank=world.rank,
                world_size=world.size,
                step=step,
                epoch=epoch,
                instance=world.generation.instance,
                formed_at=world.generation.formed_at,
            )
        self.recorder.entered(world.generation, world.rank, step, epoch)
        progress_bars.show_world(self._trainer, world.generation)
        measure_throughput(self._trainer, took_over=False)
        self.run_log.holding = True
        self._unreported.append(world.generation)

    # --- steps -------------------------------------------------------------------------------------------------------

    def drawn(self, world: World, batches: RunningBatches) -> None:
        """Write the batch's samples to the ledger, before its training step runs."""
        if self._ledger is None:
            return
        for samples, padding in batches.draws():
            self._ledger.draw(
                generation=world.generation.number,
                rank=world.rank,
                epoch=self._trainer.current_epoch,
                step=self._trainer.global_step,
                samples=samples,
                padding=padding,
                num_streams=batches.num_streams,
            )

    def epoch_ends(self, world: World, batches: RunningBatches, cut_short: str | None) -> None:
        """Write to the ledger what the epoch, whose batches are done, has left out. `cut_short`: why it ended early."""
        if self._ledger is None:
            return
        trainer = self._trainer
        rest = batches.rest(trainer.fit_loop.epoch_loop.batch_progress.current.completed)
        leaves = left_out(rest, cut_short)
        self._ledger.epoch_ends(
            generation=world.generation.number,
            rank=world.rank,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            size=rest.size,
            left_out=leaves.number,
            why=leaves.why,
        )

    def committed(self, world: World, samples: int) -> None:
        """Report a committed batch, of `samples` in the whole world; and the rescale, if it is the first after one."""
        trainer, pause = self._trainer, self.clock.stop()
        if pause is not None:
            self._rescaled(world, pause)
        if self._unreported:
            text = rescale_text(self._unreported, trainer.global_step, pause, self.clock.phases)
            self._unreported.clear()
            scalars = self._scalars.of_generation(trainer, world.generation, pause)
            self.run_log.add(trainer, scalars, {RESCALES: text})
        sample = self.recorder.committed(trainer, samples)
        if sample is not None:
            self.run_log.add(trainer, self._scalars.of_sample(trainer, world.generation, sample))

    def _rescaled(self, world: World, pause: float) -> None:
        """Report a rescale. `pause`: seconds without training, up to the end of the first batch after it."""
        generation, step = world.generation, self._trainer.global_step
        self.recorder.rescaled(step=step, pause=pause, phases=self.clock.phases, redrawn=self._rolled_back)
        if world.rank == 0:
            log.info(
                "generation %d: %d workers go on at step %d after a pause of %.0f ms (%s)",
                generation.number,
                generation.world_size,
                step,
                1000 * pause,
                generation.reason,
            )

    # --- unwinding and the end ---------------------------------------------------------------------------------------

    def broken_off(self) -> None:
        """Start the clock of a pause, because an exception came up through the loops; it may also be the end."""
        self.recorder.sample(self._trainer, failing=True)
        self.clock.start()

    def unwinding(self) -> None:
        """Pause the progress bar, because a rescale begins."""
        progress_bars.pause(self._trainer)

    def rolled_back(self, *, step: bool) -> None:
        """Report that this worker is back at a committed position; `step`: an unfinished step will run again."""
        self._rolled_back = step
        if step:
            self.recorder.account.step_undone()

    def ended(self, reason: str) -> None:
        """Report that this worker's part in the run is over."""
        self.recorder.ended(reason, self._trainer.global_step)

    def failed(self, reason: str) -> None:
        """Report a failure of this worker's own and hand over the logs, which the others continue once they know of it."""
        self.ended(reason)
        try:
            self.run_log.commit()
            self.run_log.flush()
        except Exception as error:  # for example a full disk; the user must see the first failure
            log.warning("what was logged last may not be in the logs: %s", error)

    def left(self, reason: str) -> None:
        """Report that this worker leaves a run that goes on."""
        self.ended(reason)
        progress_bars.close(self._trainer)

    def finishing(self) -> None:
        """Report that this worker has completed the training and waits for the others."""
        self.recorder.sample(self._trainer)
        self.run_log.commit()
        self.recorder.account.enter(Bucket.WAITING)

    def finished(self, world: World) -> None:
        """Report that training is over for all members."""
        self.run_log.holding = False
        self.ended("finished")
        if self._ledger is not None:
            self._ledger.end(generation=world.generation.number, rank=world.rank, step=self._trainer.global_step)

    def left_alone(self, former: World) -> None:
        """Take over the tasks of rank 0 after the end of training if this worker was another rank."""
        if former.rank != 0:
            self.run_log.take_over(self._trainer, LoopPhase.ADVANCE_END)

    def close(self) -> None:
        """Close the event log and the ledger. Idempotent."""
        self.recorder.close()
        if self._ledger is not None:
            self._ledger.close()
