"""`Gradients` is the run's policy for adding up the workers' gradients; `VirtualRanks` is the other implementation."""

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
    """Add up the workers' gradients. Methods are called in this order, those from `begin` on for each batch."""

    seeds_batches: bool
    """Whether this policy seeds the random numbers of a batch, in place of `ElasticCallback(seed=...)`."""

    def attach(self, trainer: pl.Trainer) -> None:
        """Bind to the trainer that will fit. Raises `SettingsError` for settings that this policy cannot honour."""

    def fingerprint(self, device: torch.device) -> dict[str, str]:
        """Return what must be the same on all nodes for this policy, by name, as text."""

    def refuse_superfluous(self, rank: int, world_size: int, node: str) -> None:
        """Raise `SettingsError` on workers that have nothing to compute; the others continue without them."""

    def wrap(self, wrap_in_ddp: Callable[[], None], *, sync: bool) -> None:
        """Prepare the model for a new process group. `sync`: all ranks take rank 0's weights and buffers."""

    def plan(self, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> VirtualPlan | None:
        """Return the plan for the rest of the epoch in this world; `None`: the batch policy makes it."""

    def begin(self, index: int) -> None:
        """Prepare for micro-batch number `index`, counted from 0 where the plan begins, before it is drawn."""

    def before_training_step(self) -> None:
        """Prepare for the training step: the batch is loaded, and the hooks before the step have run."""

    def training_step(self, step: Callable[[], Any]) -> Any:
        """Run the user's training step and return its output."""

    def backward(self, loss: torch.Tensor, run: Callable[[], torch.Tensor], *, weight: float) -> torch.Tensor:
        """Run backward for a loss that was multiplied by `weight`; return what Lightning's strategy returns."""

    def reduce(self) -> None:
        """Give all workers the step's gradients, before the optimizer steps. May be a collective."""


class DdpGradients:
    """Let DDP average the gradients while backward runs."""

    seeds_batches = False

    def attach(self, trainer: pl.Trainer) -> None:
        """Do nothing: all that DDP can do is possible."""

    def fingerprint(self, device: torch.device) -> dict[str, str]:  # noqa: ARG002
        return {}

    def refuse_superfluous(self, rank: int, world_size: int, node: str) -> None:
        """Do nothing: every worker computes gradients."""

    def wrap(self, wrap_in_ddp: Callable[[], None], *, sync: bool) -> None:  # noqa: ARG002  DDP itself syncs
        wrap_in_ddp()

    def plan(self, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> VirtualPlan | None:  # noqa: ARG002
        return None

    def begin(self, index: int) -> None:
        """Do nothing: batches need no preparation."""

    def before_training_step(self) -> None:
        """Do nothing: batches need no preparation."""

    def training_step(self, step: Callable[[], Any]) -> Any:
        return step()

    def backward(self, loss: torch.Tensor, run: Callable[[], torch.Tensor], *, weight: float) -> torch.Tensor:  # noqa: ARG002
        return run()

    def reduce(self) -> None:
        """Do nothing: DDP has averaged the gradients."""
