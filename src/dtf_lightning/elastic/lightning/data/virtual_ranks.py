"""`VirtualRanks` computes logical ranks one after the other and sums their gradients in an order that never changes.

This is `ElasticCallback(virtual_ranks=8)`. A logical rank's part of a step is one Lightning batch, so that a step
accumulates as many batches as the largest block of logical ranks has. Gradients do not accumulate in the parameters:
each logical rank's gradients are taken away when its backward is done, and before the optimizer steps all workers get
their sum, added in an order that does not depend on the world. DDP is not used, because it adds in an order of its own.

Rules that this file guards, for every logical rank of a step:

* it starts with the same weights and the same buffers, and with random numbers that belong to its step and rank;
* its loss is weighted by its samples, and divided by nothing else (Lightning divides by the length of the accumulation,
  which depends on the world);
** floating-point buffers (BatchNorm's statistics) change by the mean of the logical ranks' changes, weighted by samples;
  other buffers (counters) take logical rank 0's values;
* a stand-in (a batch computed by a worker that has no samples left in the step) leaves no gradient, buffer or logged
  value.

Private API touched here: the optimization loop's `output_result_cls`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives.canonical_sum import FlatLayout, Tensors, add, sum_over_workers
from dtf_lightning.elastic.data.random_numbers import seed_of, seed_process
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler
from dtf_lightning.elastic.data.virtual_plan import TreeSum, VirtualPlan
from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
from dtf_lightning.elastic.lightning.host.names import ClosureResult
from dtf_lightning.elastic.lightning.host.trainer import has_comm_hook, syncs_batch_norm
from dtf_lightning.elastic.lightning.rewind.undo import Undo
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

READING, COMPUTING, STEPPING = range(3)
"""Streams of random numbers: for a batch's samples, for its forward and backward, and for the optimizer step."""


class UndividedLoss(ClosureResult):
    """Keep a training step's result as Lightning does, without dividing the loss by the number of accumulated batches."""

    @classmethod
    def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> ClosureResult:  # noqa: ARG003
        """Return the result. Raises `SettingsError` for a skipped step, because the others count on its gradient."""
        if training_step_output is None:
            raise SettingsError(
                "training_step returned None, which skips a batch; with virtual_ranks every logical rank takes part in "
                "every step. Return a loss that is zero instead, for example 0.0 * loss."
            )
        return super().from_training_step_output(training_step_output)


class VirtualRanks:
    """Compute one worker's logical ranks and take part in the sums over all of them. A `Gradients` policy.

    Args:
        num_logical: number of logical ranks of the run.
        seed: seed from `ElasticCallback(seed=...)`; `None`: the sampler's seed.
        drop_last: whether an epoch's last, smaller step is left out.
        undo: holds the buffers as they were at the step's beginning.
    """

    seeds_batches = True

    def __init__(self, num_logical: int, *, seed: int | None, drop_last: bool, undo: Undo) -> None:
        self.num_logical = num_logical
        self._drop_last = drop_last
        self._undo = undo
        self._trainer: Any = None
        self._plan: VirtualPlan | None = None
        self._index = 0
        self._assigned_seed = seed
        self._seed = 0
        self._sampler: ElasticDistributedSampler | None = None
        """Sampler of the plan; its epoch is right even while DataLoader workers load the next epoch's first batches."""
        self._rank = 0
        self._tree = TreeSum(add)
        self._layout: FlatLayout | None = None
        self._layout_for: Any = None
        self._aside = Undo()

    # --- set-up ------------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer) -> None:
        """Bind to the trainer that will fit. Raises `SettingsError` for what would make the sums depend on the world."""
        self._refuse(trainer)
        self._trainer = trainer
        trainer.fit_loop.epoch_loop.automatic_optimization.output_result_cls = UndividedLoss

    def fingerprint(self, device: torch.device) -> dict[str, str]:
        """Return what else must be the same on all nodes for the results to be the same in every bit."""
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
        return {"torch threads (OMP_NUM_THREADS)": str(torch.get_num_threads()), "hardware": kind}

    def _refuse(self, trainer: Any) -> None:
        what = f"ElasticCallback(virtual_ranks={self.num_logical})"
        if syncs_batch_norm(trainer.strategy) or any(
            isinstance(module, torch.nn.SyncBatchNorm) for module in trainer.lightning_module.modules()
        ):
            raise SettingsError(
                f"{what} and SyncBatchNorm: its statistics are those of whatever workers there are. Use BatchNorm, whose "
                "statistics are then a logical rank's."
            )
        if has_comm_hook(trainer.strategy):
            raise SettingsError(
                f"{what} adds gradients itself; DDPStrategy(ddp_comm_hook=..., ddp_comm_state=...) has no place in it."
            )
        if any(isinstance(one, AdaptiveLearningRate) and one.name != "none" for one in trainer.callbacks):
            raise SettingsError(
                f"{what}: a step has the same samples in every world, so that its learning rate needs no rule. "
                "Remove AdaptiveLearningRate (learning_rate=...)."
            )

    def refuse_superfluous(self, rank: int, world_size: int, node: str) -> None:
        """Raise `SettingsError` on workers for which no logical rank is left; the others continue without them."""
        if rank >= self.num_logical:
            raise SettingsError(
                f"ElasticCallback(virtual_ranks={self.num_logical}): node {node} came as rank {rank} (starting at 0) into "
                f"a world of {world_size} workers, and there are no more than {self.num_logical} logical ranks to compute. "
                f"It leaves; the others go on. Start at most {self.num_logical} workers (torchrun --nnodes=1:N), or use "
                "more virtual ranks from the beginning."
            )

    @torch.no_grad()
    def wrap(self, wrap_in_ddp: Callable[[], None], *, sync: bool) -> None:  # noqa: ARG002  DDP is not used
        """Broadcast rank 0's weights and buffers if `sync`, as DDP does at a run's start; do not wrap the model."""
        module = self._trainer.lightning_module
        if sync and dist.get_world_size() > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), src=0)

    def plan(self, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> VirtualPlan:
        """Return the plan for the rest of the epoch in this world."""
        sampler = batch_sampler.sampler
        assert loader.batch_size is not None
        self._plan = VirtualPlan(
            self.num_logical,
            consumed=sampler.cursor,
            dataset_size=sampler.dataset_size,
            world_size=min(
                sampler.num_replicas, self.num_logical
            ),  # set-up may see a larger world, which is provisional
            batch_size=loader.batch_size,
            drop_last=self._drop_last or loader.drop_last,
        )
        self._rank = min(sampler.rank, self._plan.world_size - 1)
        self._sampler = sampler
        self._seed = sampler.seed if self._assigned_seed is None else self._assigned_seed
        batch_sampler.seed_of_batch = lambda index: self._seed_of(index, READING)
        return self._plan

    # --- a step ------------------------------------------------------------------------------------------------------

    def begin(self, index: int) -> None:
        """Prepare for micro-batch number `index`, counted from 0 where the plan begins, before it is drawn."""
        self._index = index
        if self._plan is not None and index % self._plan.accumulate == 0:
            self._tree = TreeSum(add)

    def before_training_step(self) -> None:
        """Seed the training step: the batch is loaded, and the hooks before the step have run."""
        seed_process(self._seed_of(self._index, COMPUTING))

    @property
    def _counts(self) -> bool:
        assert self._plan is not None
        return self._plan.share(self._index, self._rank) > 0

    def training_step(self, step: Callable[[], Any]) -> Any:
        """Run the user's training step and return its output; what a stand-in logs or counts is undone."""
        if self._counts:
            return step()
        self._aside.step_begins(self._trainer)
        output = step()
        self._aside.forget_step(self._trainer)
        return output

    def backward(self, loss: torch.Tensor, run: Callable[[], torch.Tensor], *, weight: float) -> torch.Tensor:
        """Run backward, put the gradients and changes of buffers aside, and return the loss."""
        assert self._plan is not None
        counts = self._counts
        if counts:
            run()
        logical = self._plan.logical_rank(self._index, self._rank)
        if logical is not None:
            self._collect(logical, counts=counts, weight=weight)
        return loss

    @torch.no_grad()
    def _collect(self, logical: int, *, counts: bool, weight: float) -> None:
        parameters = self._parameters()
        gradients: Tensors = []
        for parameter in parameters:
            if not counts or parameter.grad is None:
                gradients.append(torch.zeros_like(parameter))
            elif parameter.grad.layout is not torch.strided:
                raise SettingsError(
                    "virtual_ranks needs dense gradients, which it adds in one order; got a sparse one. Use "
                    "torch.nn.Embedding(sparse=False)."
                )
            else:
                gradients.append(parameter.grad)
        there = self._flags([counts and parameter.grad is not None for parameter in parameters], parameters[0])
        moves = self._moves(logical, counts=counts, weight=weight)
        for parameter in parameters:
            parameter.grad = None
        self._undo.snapshot.restore_buffers()
        self._tree.push(logical, [there, *gradients, *moves])

    def _moves(self, logical: int, *, counts: bool, weight: float) -> Tensors:
        """Return what the logical rank contributes to each buffer."""
        moves: Tensors = []
        for name, now, before in self._undo.snapshot.buffers():
            if now.shape != before.shape:
                raise SettingsError(
                    f"the buffer {name} changed its shape from {tuple(before.shape)} to {tuple(now.shape)} in a "
                    "training step; with virtual_ranks buffers must keep their shapes"
                )
            if not before.is_floating_point():
                moves.append(now.clone() if logical == 0 else torch.zeros_like(now))
            elif counts:
                # torch.where, because infinity minus infinity is not a number
                moves.append(torch.where(now == before, 0, now - before).mul_(weight))
            else:
                moves.append(torch.zeros_like(before))
        return moves

    @torch.no_grad()
    def reduce(self) -> None:
        """Give all workers the step's gradients and buffers, and the optimizer its random numbers. A collective."""
        assert self._plan is not None
        parameters, buffers = self._parameters(), list(self._undo.snapshot.buffers())
        layout = self._layout_of(parameters, [now for _, now, _ in buffers])
        there, *sums = sum_over_workers(
            self._tree, num_logical=self.num_logical, blocks=self._plan.blocks, layout=layout
        )
        self._tree = TreeSum(add)
        for parameter, gradient, present in zip(parameters, sums, there.tolist(), strict=False):
            parameter.grad = gradient if present else None
        for (_, now, before), moved in zip(buffers, sums[len(parameters) :], strict=True):
            if before.is_floating_point():
                now.add_(moved)
            else:
                now.copy_(moved)
        seed_process(self._seed_of(self._index, STEPPING))

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self._trainer.lightning_module.parameters() if parameter.requires_grad]

    def _layout_of(self, parameters: list[torch.nn.Parameter], buffers: list[torch.Tensor]) -> FlatLayout:
        """Return the layout for this world and the set of trained parameters, which callbacks may freeze and unfreeze."""
        assert self._plan is not None
        what = self._plan.world_size, [id(parameter) for parameter in parameters], [buffer.shape for buffer in buffers]
        if self._layout is None or self._layout_for != what:
            there = self._flags([False] * len(parameters), parameters[0])
            self._layout, self._layout_for = FlatLayout([there, *parameters, *buffers], self._plan.world_size), what
        return self._layout

    def _flags(self, values: list[bool], like: torch.Tensor) -> torch.Tensor:
        """Return a tensor that says for each parameter whether it has a gradient, as numbers that can be added."""
        return torch.tensor(values, dtype=like.dtype, device=like.device)

    def _seed_of(self, index: int, stream: int) -> int:
        assert self._plan is not None
        assert self._sampler is not None
        step, logical = self._plan.place(index, self._rank)
        return seed_of(self._seed, self._sampler.epoch, step, 0 if stream == STEPPING else logical, stream)
