"""What a worker tells the world of its run: the event log, the user's loggers, the progress bar, the terminal."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.reporting.elastic_scalars import rescale_text
from dtf_lightning.elastic.lightning.reporting.tensorboard_log import RESCALES
from dtf_lightning.elastic.lightning.rewind.training_state import dump_start
from dtf_lightning.elastic.rules.resume import LoopPhase

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.session import ElasticSession

log = logging.getLogger("dtf_lightning")


def loaded(session: ElasticSession, position: dict[str, Any] | None) -> None:
    """Lightning has loaded a checkpoint, or a peer's state, in which this was the position."""
    session.loaded_position = position
    if position is not None and session.generation.number == 0 and session.trainer is not None:
        session.run_log.resume(session.trainer, session.run_dir(session.trainer))


def take_rank_zero(session: ElasticSession, former: tuple[int, int]) -> None:
    """Go on with what a former rank 0 did, where this worker is rank 0. `former`: its rank and generation before."""
    if session.strategy.global_rank != 0:
        return
    rank, generation = former
    trainer, phase = session.trainer, session.progress.phase
    folder = session.run_dir(trainer)
    if generation == 0 and session.generation.number > 1:  # all who trained before are gone
        session.run_log.resume(trainer, folder)
    if session.run_log.resumed or (rank != 0 and session.generation.number > 1):
        session.run_log.take_over(trainer, phase)
        if rank != 0 and generation > 0:
            progress_bars.take_over(trainer, in_epoch=phase is not LoopPhase.EPOCH_START)
    if rank != 0 or generation == 0:
        session.run_log.remember(folder, dump_start(trainer))


def batch_committed(session: ElasticSession, pause: float | None) -> None:
    """A batch is committed; `pause`: seconds without training before it, if it is the first after a rescale."""
    trainer, generation, scalars = session.trainer, session.generation, session.scalars
    if pause is not None:
        _rescaled(session, pause)
    if session.untold:
        text = rescale_text(session.untold, trainer.global_step, pause, session.clock.phases)
        session.untold.clear()
        session.run_log.add(trainer, scalars.of_generation(trainer, generation, pause), {RESCALES: text})
    sample = session.recorder.committed(trainer, session.progress.batch_samples)
    if sample is not None:
        session.run_log.add(trainer, scalars.of_sample(trainer, generation, sample))


def _rescaled(session: ElasticSession, pause: float) -> None:
    generation, step = session.generation, session.trainer.global_step
    session.recorder.rescaled(step=step, pause=pause, phases=session.clock.phases, redrawn=session.redrawn)
    if session.strategy.global_rank == 0:
        log.info(
            "generation %d: %d workers go on at step %d after a pause of %.0f ms (%s)",
            generation.number,
            generation.world_size,
            step,
            1000 * pause,
            generation.reason,
        )
