"""Who adds the workers' gradients up: a policy of the run. `virtual_ranks.py` has the other one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler
from dtf_lightning.elastic.data.virtual_plan import VirtualPlan

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import torch
    from torch.utils.data import DataLoader


class Gradients(Protocol):
    """Adds the workers' gradients up. Methods are called in this order, those from `begin` on for each batch."""

    seeds_batches: bool
    """Random numbers of a batch are this policy's business, not those of `ElasticCallback(seed=...)`."""

    def attach(self, trainer: pl.Trainer) -> None:
        """Raises `SettingsError` for what this policy cannot do."""

    def fingerprint(self, device: torch.device) -> dict[str, str]:
        """What must be the same on all nodes for it, by name, as text."""

    def refuse_superfluous(self, rank: int, world_size: int, node: str) -> None:
        """Raises `SettingsError` on workers that have nothing to do; the others go on without them."""

    def wrap(self, wrap_in_ddp: Callable[[], None], *, sync: bool) -> None:
        """A process group is up. `sync`: all take rank 0's weights and buffers."""

    def plan(self, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> VirtualPlan | None:
        """The rest of the epoch in this world; `None`: the batch policy says it."""

    def begin(self, index: int) -> None:
        """The epoch's micro-batch `index`, counted from where the plan begins, is about to be drawn."""

    def before_training_step(self) -> None:
        """The batch is there, and so are the hooks before it."""

    def training_step(self, step: Callable[[], Any]) -> Any:
        """Run the user's training step; its output."""

    def backward(self, loss: torch.Tensor, run: Callable[[], torch.Tensor], *, weight: float) -> torch.Tensor:
        """Run backward for a loss that was multiplied by `weight`; what Lightning's strategy returns."""

    def reduce(self) -> None:
        """Before the optimizer steps: all workers hold the step's gradients. May be a collective."""


class DdpGradients:
    """DDP averages the gradients while backward runs."""

    seeds_batches = False

    def attach(self, trainer: pl.Trainer) -> None:
        """Whatever DDP can do, this can."""

    def fingerprint(self, device: torch.device) -> dict[str, str]:  # noqa: ARG002
        return {}

    def refuse_superfluous(self, rank: int, world_size: int, node: str) -> None:
        """Nobody is."""

    def wrap(self, wrap_in_ddp: Callable[[], None], *, sync: bool) -> None:  # noqa: ARG002  DDP itself syncs
        wrap_in_ddp()

    def plan(self, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> VirtualPlan | None:  # noqa: ARG002
        return None

    def begin(self, index: int) -> None:
        """Every batch is like the others."""

    def before_training_step(self) -> None:
        """Every batch is like the others."""

    def training_step(self, step: Callable[[], Any]) -> Any:
        return step()

    def backward(self, loss: torch.Tensor, run: Callable[[], torch.Tensor], *, weight: float) -> torch.Tensor:  # noqa: ARG002
        return run()

    def reduce(self) -> None:
        """DDP has done it."""
