"""`StartWorld` makes every worker configure its optimizers as in the world in which the run began.

Each worker sets itself up alone, in a provisional world. But `configure_optimizers` may use `trainer.world_size` (for a
scaled learning rate) and `trainer.estimated_stepping_batches` (for a warm-up or a cycle, often in a closure that no
scheduler's state contains): with different numbers, replicas would train with different learning rates. So the method is
called once more where it has seen other numbers: at the run's beginning in the world that was formed, and by a joiner
in the world in which the run began.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dtf_lightning.elastic.lightning.checks.compatibility import refuse_optimizers
from dtf_lightning.elastic.lightning.cluster_environment import ElasticEnvironment
from dtf_lightning.elastic.lightning.rewind.schedulers import hold_at_the_end


@dataclass(frozen=True, kw_only=True)
class SeenWorld:
    """Hold the numbers of a world that a module's set-up can read from the trainer."""

    world_size: int
    num_training_batches: float
    """Batches per rank and epoch; infinite where the data has not been loaded yet."""
    accumulate_grad_batches: int


class StartWorld:
    """Compare the world that one worker's `configure_optimizers` saw with the one that it has to see."""

    def __init__(self, trainer: Any, environment: ElasticEnvironment) -> None:
        self._trainer = trainer
        self._environment = environment
        self._configured_for: SeenWorld | None = None
        """The world that `configure_optimizers` saw; `None` before `configured`."""
        self.run_began: SeenWorld | None = None
        """The world that it has to see on every worker; `None` before the run has begun."""

    def configured(self) -> None:
        """Take note that set-up has called `configure_optimizers`. Raises `SettingsError` for unsuitable optimizers."""
        refuse_optimizers(self._trainer)
        hold_at_the_end(self._trainer)
        self._configured_for = self._seen()

    def begin(self) -> None:
        """Let the run begin in the current world, whose training loader is made; joiners configure themselves for it."""
        assert self._configured_for is not None
        self.run_began = self._seen()
        if self._configured_for.world_size != self.run_began.world_size:
            self._configure_anew(self.run_began)

    def join(self, run_began: SeenWorld | None) -> None:
        """Configure a joiner before it loads the run's state; `None`: the sender has not begun either."""
        self.run_began = run_began
        if run_began is not None and self._configured_for != run_began:
            self._configure_anew(run_began)

    def _seen(self) -> SeenWorld:
        return SeenWorld(
            world_size=self._trainer.world_size,
            num_training_batches=self._trainer.num_training_batches,
            accumulate_grad_batches=self._trainer.accumulate_grad_batches,
        )

    def _configure_anew(self, world: SeenWorld) -> None:
        strategy = self._trainer.strategy
        optimizers, schedulers = strategy.optimizers, [config.scheduler for config in strategy.lr_scheduler_configs]
        with self._showing(world):
            strategy.setup_optimizers(self._trainer)
        hold_at_the_end(self._trainer)
        self._configured_for = world
        if any(optimizer.state for optimizer in optimizers):  # loaded from a checkpoint
            for optimizer, former in zip(strategy.optimizers, optimizers, strict=True):
                optimizer.load_state_dict(former.state_dict())
            for config, scheduler in zip(strategy.lr_scheduler_configs, schedulers, strict=True):
                config.scheduler.load_state_dict(scheduler.state_dict())

    @contextmanager
    def _showing(self, world: SeenWorld) -> Iterator[None]:
        """Let the trainer show another world inside the context."""
        trainer, environment = self._trainer, self._environment
        now, rank = self._seen(), environment.global_rank()
        environment.enter(rank=rank, world_size=world.world_size)
        trainer.fit_loop.max_batches = world.num_training_batches
        trainer.accumulate_grad_batches = world.accumulate_grad_batches
        try:
            yield
        finally:
            environment.enter(rank=rank, world_size=now.world_size)
            trainer.fit_loop.max_batches = now.num_training_batches
            trainer.accumulate_grad_batches = now.accumulate_grad_batches
