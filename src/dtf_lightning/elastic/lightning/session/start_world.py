"""The world in which a run began: every worker configures its optimizers as if it had set itself up there.

Workers set themselves up alone, each in a provisional world. But `configure_optimizers` may look at
`trainer.world_size` (a scaled learning rate) and `trainer.estimated_stepping_batches` (a warm-up, a cycle, often in a
closure that no scheduler's state contains): with numbers of their own, replicas would train with different learning rates.
So it is called once more, where it has seen other numbers: at the run's beginning in the world that was formed, and by a
joiner in the world in which the run began.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.rewind.schedulers import hold_at_the_end

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.session import ElasticSession


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What set-up can see of the world."""

    world_size: int
    num_training_batches: float
    """Per rank and epoch; infinite where nobody has looked at the data yet."""
    accumulate_grad_batches: int


def seen_by(trainer: Any) -> Beginning:
    """What set-up sees now."""
    return Beginning(
        world_size=trainer.world_size,
        num_training_batches=trainer.num_training_batches,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
    )


def begin(session: ElasticSession) -> None:
    """The run begins in this world, its training loader is made: it counts from now on, for joiners too."""
    assert session.configured_for is not None
    session.run_began = seen_by(session.trainer)
    if session.configured_for.world_size != session.run_began.world_size:
        _configure_anew(session, session.run_began)


def join(session: ElasticSession, run_began: Beginning | None) -> None:
    """Before a joiner loads the run's state; `None`: the sender has not begun either."""
    session.run_began = run_began
    if run_began is not None and session.configured_for != run_began:
        _configure_anew(session, run_began)


def _configure_anew(session: ElasticSession, world: Beginning) -> None:
    trainer, strategy = session.trainer, session.strategy
    optimizers, schedulers = strategy.optimizers, [config.scheduler for config in strategy.lr_scheduler_configs]
    with _seeing(session, world):
        strategy.setup_optimizers(trainer)
    hold_at_the_end(trainer)
    session.configured_for = world
    if any(optimizer.state for optimizer in optimizers):  # loaded from a checkpoint
        for optimizer, former in zip(strategy.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(former.state_dict())
        for config, scheduler in zip(strategy.lr_scheduler_configs, schedulers, strict=True):
            config.scheduler.load_state_dict(scheduler.state_dict())


@contextmanager
def _seeing(session: ElasticSession, world: Beginning) -> Iterator[None]:
    """Have the trainer show another world."""
    trainer, environment = session.trainer, session.cluster_environment
    now, rank = seen_by(trainer), environment.global_rank()
    environment.enter(rank=rank, world_size=world.world_size)
    trainer.fit_loop.max_batches = world.num_training_batches
    trainer.accumulate_grad_batches = world.accumulate_grad_batches
    try:
        yield
    finally:
        environment.enter(rank=rank, world_size=now.world_size)
        trainer.fit_loop.max_batches = now.num_training_batches
        trainer.accumulate_grad_batches = now.accumulate_grad_batches
