"""`Rollback` restores a good checkpoint in the middle of a fit, and leaves out the samples that led to a divergence.

Weights, buffers and optimizer moments go back; the position in the epoch does not: the loops continue with the next
batch, so that the samples trained since that checkpoint are not repeated in this epoch, and the step counter, on which
loggers and schedules depend, never jumps. Learning rates stay where their schedules are, times the factor. Internal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.utils.data import BatchSampler, DataLoader

from dtf_lightning.elastic.collectives.gathering import gather_objects
from dtf_lightning.elastic.collectives.rank_zero_work import from_rank_zero
from dtf_lightning.elastic.data.skipping_sampler import SkippingSampler, exclude
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.lightning.host.names import rank_zero_warn
from dtf_lightning.elastic.numerics.learning_rate_cut import (
    cut_learning_rates,
    hyperparameters,
    restore_hyperparameters,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class Outcome:
    """Say whether a rollback was done, and why or why not."""

    done: bool
    reason: str


@dataclass
class Rollback:
    """Roll a trainer back at most `max_rollbacks` times, and count how often it was done."""

    learning_rate_factor: float
    max_rollbacks: int
    num_done: int = 0

    def run(self, trainer: pl.Trainer, checkpoints: BestCheckpoints, good_until: int) -> Outcome:
        """Load the best intact checkpoint of at most `good_until` steps into the trainer; called on all ranks together.

        Raises:
            CheckpointError: an asynchronous save had failed, or the manifest cannot be written.
        """
        if self.num_done >= self.max_rollbacks:
            return Outcome(False, f"{self.num_done} of {self.max_rollbacks} rollbacks are used up: training stops")

        def load() -> dict[str, Any] | None:
            found = checkpoints.load_before(good_until)
            checkpoints.suspect(good_until + 1)
            if found is None:
                return None
            record, state = found
            return {"step": record.step, "name": record.name, **{key: state[key] for key in _RESTORED}}

        # By broadcast, not from the disk: ranks need not share a file system, and rank 0 has verified the checkpoint.
        state = from_rank_zero(load, rank=trainer.global_rank, broadcast=trainer.strategy.broadcast)
        if state is None:
            return Outcome(False, f"there is no intact checkpoint of at most {good_until} steps: training stops")
        self._restore(trainer, state)
        self.num_done += 1
        rate = trainer.optimizers[0].param_groups[0]["lr"] if trainer.optimizers else 0.0
        return Outcome(
            True,
            f"rollback {self.num_done} of {self.max_rollbacks}: weights and optimizer of {state['name']} (step "
            f"{state['step']}), learning rate times {self.learning_rate_factor:g}, now {float(rate):.4g}",
        )

    def _restore(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        rates = hyperparameters(trainer.optimizers)
        trainer.strategy.load_model_state_dict(state, strict=trainer.lightning_module.strict_loading)
        trainer.strategy.load_optimizer_state_dict(state)
        restore_hyperparameters(trainer.optimizers, rates)
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        cut_learning_rates(trainer.optimizers, schedulers, self.learning_rate_factor)

    def exclude(
        self, trainer: pl.Trainer, excluded: set[int], mine: list[int], sampler: SkippingSampler | None
    ) -> None:
        """Leave out the samples of all ranks (`mine` are this rank's) on all ranks. A collective."""
        everyone = gather_objects(mine) if trainer.world_size > 1 else [mine]
        if sampler is not None:
            # Sorted, because the choice of those that fit under the limit must not depend on the order.
            exclude(excluded, sorted({sample for samples in everyone for sample in samples}), sampler.dataset_size)


_RESTORED = ("state_dict", "optimizer_states")


def watch_samples(trainer: pl.Trainer, excluded: set[int], watch: Callable[[SkippingSampler], None]) -> None:
    """Make every training loader's sampler leave out `excluded` from now on; `watch` is called with each such sampler.

    A `Strategy` sees every loader before its first batch (`process_dataloader`).
    """
    process = trainer.strategy.process_dataloader

    def process_and_watch(loader: Any) -> Any:
        processed = process(loader)
        if trainer.training:
            sampler = _install(processed, excluded)
            if sampler is not None:
                watch(sampler)
        return processed

    strategy: Any = trainer.strategy
    strategy.process_dataloader = process_and_watch


def _install(loader: Any, excluded: set[int]) -> SkippingSampler | None:
    batches = loader.batch_sampler if isinstance(loader, DataLoader) else None
    if batches is None or not isinstance(batches, BatchSampler) or loader.batch_size is None:
        rank_zero_warn(
            f"DivergenceStopping cannot leave samples out of a {type(loader).__name__} without a BatchSampler; a "
            "rollback will restore the weights and cut the learning rate only"
        )
        return None
    if isinstance(batches, ElasticBatchSampler):
        rank_zero_warn(
            "DivergenceStopping cannot leave samples out of steps that are planned ahead (batch='global', tail='exact', "
            "virtual_ranks, a policy of your own); a rollback will restore the weights and cut the learning rate only"
        )
        return None
    if not isinstance(batches.sampler, SkippingSampler):
        sized: Any = loader.dataset
        batches.sampler = SkippingSampler(batches.sampler, len(sized), loader.batch_size, excluded)
    sampler: SkippingSampler = batches.sampler
    return sampler
