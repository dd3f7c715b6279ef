"""`ElasticDDPStrategy` is a DDP strategy whose world changes while it trains. Public: `dtf_lightning.ElasticDDPStrategy`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.lightning.after_training import AfterTraining
from dtf_lightning.elastic.lightning.checks.evaluations import Evaluations
from dtf_lightning.elastic.lightning.data.evaluation import evaluate_once
from dtf_lightning.elastic.lightning.data.loaders import make_elastic, same_data
from dtf_lightning.elastic.lightning.host.loops import forget_loader, no_hook_runs
from dtf_lightning.elastic.lightning.host.names import DDPStrategy, StrategyRegistry, TrainerFn
from dtf_lightning.elastic.lightning.reporting.rank_zero import set_rank_zero
from dtf_lightning.elastic.lightning.run.current import current_run
from dtf_lightning.elastic.lightning.run.interface import ElasticRun
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

NOT_LIVE = (
    "strategy='elastic_ddp' was chosen, but this process was not started by `torchrun --rdzv-backend=etcd`, so that no "
    "agent can tell it of joins and leaves. Start it with\n"
    "    torchrun --nnodes=1:4 --rdzv-backend=etcd --rdzv-endpoint=HOST:2379 --rdzv-id=RUN {script}\n"
    "or keep strategy='ddp' and add callbacks=[ElasticCallback()], which does nothing where there is no agent."
)

NO_CALLBACK = (
    "Trainer(strategy={name}) fits without the callback that makes the training loops elastic: the first rescale would "
    'end it. Write Trainer(strategy="elastic_ddp", callbacks=[ElasticCallback()]).'
)


class ElasticDDPStrategy(DDPStrategy):
    """Train with DDP while the process group is replaced under it: same numerics, no extra collective per step.

    A script rarely constructs it: `ElasticCallback` turns the trainer's strategy into one. `Trainer(strategy=
    "elastic_ddp")` and `ElasticDDPStrategy(...)` are the explicit forms; keyword arguments are `DDPStrategy`'s.

    Raises:
        SettingsError: the process was not started by torchrun with this package's rendezvous.
    """

    strategy_name = "elastic_ddp"

    def __init__(self, *, run_settings: RunSettings | None = None, **kwargs: Any) -> None:
        run = current_run(run_settings)
        if run is None:
            raise SettingsError(NOT_LIVE.format(script="train.py"))
        super().__init__(cluster_environment=run.environment, **kwargs)
        self.adopt(run)

    def adopt(self, run: ElasticRun) -> None:
        """Bind the strategy to a run; also serves a plain `DDPStrategy` object whose class was replaced by this one."""
        self.run = run
        self.cluster_environment = run.environment
        self._alone = False
        self._loads_again = False
        self._kept_loader: Any = None
        self._evaluations = Evaluations()
        self.after_training = AfterTraining(run)
        self._evaluates_first = False

    # --- called by Lightning -----------------------------------------------------------------------------------------

    @property
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        return self.parallel_devices[self.local_rank % len(self.parallel_devices)]

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        if self._evaluates_first and dist.is_initialized():
            # The run's world is provisional: those evaluate together who can reach each other, a node's workers.
            return {"num_replicas": dist.get_world_size(), "rank": dist.get_rank()}
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    def set_world_ranks(self) -> None:
        set_rank_zero(self.global_rank)

    def setup(self, trainer: pl.Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.run.trainer is not trainer:
            raise SettingsError(NO_CALLBACK.format(name=self.strategy_name))
        no_hook_runs(trainer)
        self._evaluates_first = trainer.state.fn != TrainerFn.FITTING and not self.run.over
        set_up = super().setup
        self.after_training.set_up(trainer, lambda: set_up(trainer))

    def _configure_launcher(self) -> None:
        self._launcher = None  # torchrun has launched

    def setup_environment(self) -> None:
        # The run has formed the process group already.
        assert self.accelerator is not None
        self.accelerator.setup_device(self.root_device)

    def configure_ddp(self) -> None:
        """Do nothing: `wrap_model` wraps the model when the worker enters a generation."""

    def process_dataloader(self, dataloader: Any) -> Any:
        fit_loop: Any = self.run.trainer.fit_loop if self.run.trainer is not None else None
        if not getattr(fit_loop, "in_setup", False):
            return self._evaluated(dataloader)
        fit_loop.num_loaders += 1
        first = fit_loop.num_loaders == 1
        kept = self._kept_loader if first else None
        if kept is not None and same_data(kept, dataloader) and kept.batch_size == dataloader.batch_size:
            loader = kept  # its persistent workers live on
        else:
            loader = make_elastic(dataloader, self.run.settings.batches)
            if first:
                self._kept_loader = loader if getattr(loader, "persistent_workers", False) else None
        self.run.bind_loader(loader, first=first)
        sampler = loader.sampler
        if (
            isinstance(sampler, ElasticDistributedSampler)
            and sampler.done_here
            and isinstance(fit_loop.trainer.limit_train_batches, float)
        ):
            fit_loop.limit_epoch(loader)
        return loader

    def _evaluated(self, loader: Any) -> Any:
        trainer = self.run.trainer
        self.after_training.check_loader(loader)
        if trainer is not None and trainer.state.fn == TrainerFn.FITTING:
            self.run.batches.agree_on_evaluation(self.run.world, loader)
        if self.run.settings.evaluation != "exact" or trainer is None or trainer.predicting:
            return loader
        return evaluate_once(loader, rank=self.global_rank, world_size=self.world_size)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        assert self.lightning_module is not None
        self._evaluations.batch_begins(self.lightning_module)
        self.run.batch_drawn()

    def backward(
        self, closure_loss: torch.Tensor, optimizer: torch.optim.Optimizer | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        weight = self.run.batches.loss_weight
        loss = closure_loss if weight == 1.0 else closure_loss * weight
        self.run.loss_there()
        backward = super().backward
        return self.run.gradients.backward(loss, lambda: backward(loss, optimizer, *args, **kwargs), weight=weight)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.lightning_module is not None
        self._evaluations.begins(self.lightning_module, self.optimizers)
        step = super().training_step
        return self.run.gradients.training_step(lambda: step(*args, **kwargs))

    def optimizer_step(
        self,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any],
        model: Any = None,
        **kwargs: Any,
    ) -> Any:
        # The first hook behind the step, so that one of the user's that raises does not hide that weights have changed.
        hook = optimizer.register_step_post_hook(self._stepped)
        hooks: Any = hook.hooks_dict_ref()
        hooks.move_to_end(hook.id, last=False)
        try:
            result = super().optimizer_step(optimizer, self.run.optimizer_closure(closure), model, **kwargs)
        finally:
            hook.remove()
        self.run.progress.stepped = True
        return result

    def _stepped(self, *_: Any) -> None:
        self.run.progress.stepped = True

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        recorder = self.run.recorder
        before = recorder.checkpoint_begins()
        super().save_checkpoint(checkpoint, filepath, storage_options)
        recorder.checkpoint_done(before, self.run.trainer, str(filepath))

    def remove_checkpoint(self, filepath: Any) -> None:
        super().remove_checkpoint(filepath)
        self.run.recorder.checkpoint_pruned(self.run.trainer, str(filepath))

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        if not self._alone:
            self._tolerant(lambda: super(ElasticDDPStrategy, self).barrier(*args, **kwargs), None)
        # Lightning's barrier behind the user's hook that makes the loaders.
        if self._loads_again and args and str(args[0]).endswith("_dataloader()"):
            self._alone = True

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        if self._alone:
            return obj
        return self._tolerant(lambda: super(ElasticDDPStrategy, self).broadcast(obj, src), obj)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if self._alone:
            return tensor
        return self._tolerant(lambda: super(ElasticDDPStrategy, self).reduce(tensor, group, reduce_op), tensor)

    def all_gather(self, tensor: torch.Tensor, group: Any = None, sync_grads: bool = False) -> torch.Tensor:
        if self._alone:
            return tensor.unsqueeze(0)
        with self.run.collective():
            return super().all_gather(tensor, group, sync_grads)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:  # noqa: A002  Lightning's name
        """Return the joint decision of the process group's members; `world_size` is provisional during set-up."""
        if self._alone or not dist.is_initialized():
            return decision
        votes = torch.tensor(int(decision), device=self.root_device)
        votes = self.reduce(votes, reduce_op="sum")
        return bool(votes == dist.get_world_size()) if all else bool(votes > 0)

    # --- called by the run and the loops ------------------------------------------------------------------------------

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the strategy's collectives local inside the context: this worker's hooks run, those of its peers do not."""
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    @contextmanager
    def loading(self, *, again: bool) -> Iterator[None]:
        """Wrap Lightning's set-up of loaders.

        Args:
            again: the run has trained before. Lightning then compares no numbers of batches, which takes two collectives
                for each loader and two for all: the members have agreed on what decides them (see `SameLoaders`).
        """
        self._loads_again = again
        try:
            yield
        finally:
            if again:
                self._loads_again = self._alone = False

    def wrap_model(self, *, sync: bool) -> None:
        """Wrap the module for the current process group, as the gradients' policy wants it.

        Args:
            sync: broadcast rank 0's weights; false if all members hold the same state already.
        """
        self.model = self.lightning_module
        self._ddp_kwargs["init_sync"] = sync
        self.run.gradients.wrap(super().configure_ddp, sync=sync)

    def group_backend(self) -> str:
        backend = self._get_process_group_backend()
        # State travels through host memory: NCCL alone could not carry it.
        return "cpu:gloo,cuda:nccl" if backend == "nccl" else backend

    def group_timeout(self) -> timedelta | None:
        return self._timeout

    @property
    def keeps_loader(self) -> bool:
        return self._kept_loader is not None

    def forget_loader(self, fit_loop: Any) -> None:
        """Make `setup_data` build the next epoch's loader: the current one covers only the rest of an epoch."""
        forget_loader(fit_loop, keep_workers=self.keeps_loader)
        self.run.progress.consumed = 0

    def _tolerant(self, collective: Callable[[], Any], alone: Any) -> Any:
        """Run a collective; after the end of training a dead member is no failure, and this worker continues alone."""
        try:
            with self.run.collective():
                return collective()
        except RuntimeError as error:
            if not self.after_training.tolerates(error):
                raise
            log.warning("a worker went away after the end of training; this one goes on without it (%s)", error)
            self._alone = True
            return alone


StrategyRegistry.register(
    ElasticDDPStrategy.strategy_name,
    ElasticDDPStrategy,
    description="DDP whose workers join, leave and die while it trains (dtf-lightning)",
    override=True,
)
