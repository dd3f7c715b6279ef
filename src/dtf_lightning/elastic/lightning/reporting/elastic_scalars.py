"""`ElasticScalars` makes the curves of a run's elasticity for TensorBoard, beside those that the user logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dtf_lightning.elastic.events import StepsDone
from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
from dtf_lightning.elastic.lightning.reporting import tensorboard_log as names
from dtf_lightning.elastic.observe.time_account import Bucket, TimeAccount

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from dtf_lightning.elastic.rules.generation import Generation


class ElasticScalars:
    """Make the scalars of one worker; only those of rank 0 are written."""

    def __init__(self, account: TimeAccount) -> None:
        self._account = account
        self._before = (0.0, 0.0)
        """Productive seconds and all seconds up to the last sample."""

    def of_generation(self, trainer: pl.Trainer, generation: Generation, pause: float | None) -> dict[str, float]:
        """Return the scalars for a generation's first step. `pause`: seconds; `None` for the first generation."""
        return {**self._world(trainer, generation), names.PAUSE: pause or 0.0}

    def of_sample(self, trainer: pl.Trainer, generation: Generation, done: StepsDone) -> dict[str, float]:
        """Return the scalars of a sample of steps; goodput is the productive share of the time since the last sample."""
        self._account.charge(self._account.current)
        now = (self._account.of(Bucket.PRODUCTIVE), self._account.total())
        (productive, total), self._before = self._before, now
        return {
            **self._world(trainer, generation),
            names.GLOBAL_BATCH: done.samples / done.steps,
            names.SAMPLES_PER_SECOND: done.samples / done.seconds if done.seconds else 0.0,
            names.GOODPUT: (now[0] - productive) / (now[1] - total) if now[1] > total else 0.0,
        }

    def _world(self, trainer: pl.Trainer, generation: Generation) -> dict[str, float]:
        return {
            names.WORLD_SIZE: float(generation.world_size),
            names.GENERATION: float(generation.number),
            names.LR_FACTOR: lr_factor(trainer),
        }


def lr_factor(trainer: pl.Trainer) -> float:
    """Return the learning rate factor of the first optimizer's next step; 1 without a rule."""
    callbacks: list[object] = trainer.callbacks  # type: ignore[attr-defined]
    rule = next((callback for callback in callbacks if isinstance(callback, AdaptiveLearningRate)), None)
    factors = rule.factors() if rule is not None else []
    return float(factors[0]) if factors else 1.0


def rescale_text(generations: Sequence[Generation], step: int, pause: float | None, phases: dict[str, float]) -> str:
    """Return a rescale as Markdown; several `generations` if the first ones broke before they had trained."""
    text = "\n\n".join(
        f"**generation {generation.number}**: {generation.world_size} workers at step {step}. {generation.reason}"
        for generation in generations
    )
    if pause is not None:
        parts = ", ".join(f"{phase.replace('_', ' ')} {1000 * seconds:.0f}" for phase, seconds in phases.items())
        text += f"\n\npause {1000 * pause:.0f} ms ({parts})"
    return text
