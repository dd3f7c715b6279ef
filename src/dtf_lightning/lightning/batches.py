"""The running epoch's batches: where the training loader stands, and what each batch weighs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from dtf_lightning.errors import SettingsError
from dtf_lightning.training.batches import ElasticBatchSampler, StepPlan, check_world
from dtf_lightning.training.random_numbers import loader_generator, seed_of, seed_process
from dtf_lightning.training.sampler import ElasticDistributedSampler
from dtf_lightning.training.virtual_ranks import VirtualPlan

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from dtf_lightning.lightning.session import ElasticSession


class RunningBatches:
    """One worker's; bound anew for each epoch and each generation."""

    def __init__(self) -> None:
        self.loader: DataLoader[Any] | None = None
        self.sampler: ElasticDistributedSampler | None = None
        self.plan: StepPlan | VirtualPlan | None = None
        """`None` where every rank's batches have the loader's size, padded or cut at the epoch's end."""
        self.done_before = 0
        """With a plan: batches of the epoch before it began."""
        self.loss_weight = 1.0
        """Of the batch that runs."""
        self._index = 0
        self.batch_size = 0
        self._compared = False
        self.accumulate = 1
        """The user's `Trainer(accumulate_grad_batches)`; a plan sets its own."""

    def bind(self, session: ElasticSession, loader: DataLoader[Any], *, in_epoch: bool, recorded: bool) -> None:
        """Take this generation's share of what is left of the epoch.

        Raises `SettingsError` for a data set of another length than the other members', and for a global batch that is
        smaller than the world that a run begins with.
        """
        progress, trainer = session.progress, session.trainer
        sampler: Any = loader.sampler
        assert loader.batch_size is not None
        self._compare_lengths(session, sampler.dataset_size)
        rank, world_size = session.strategy.global_rank, session.strategy.world_size
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if in_epoch else 0
        sampler.rebind(
            rank=rank,
            num_replicas=world_size,
            epoch=trainer.current_epoch,
            cursor=progress.consumed if in_epoch else 0,
            done_here=done * loader.batch_size,
        )
        progress.batch_samples = world_size * loader.batch_size
        progress.dataset_size = sampler.dataset_size
        if recorded:
            sampler.drawn = deque()
        if self.sampler is not None:
            sampler.adopt_order(self.sampler)
        self.loader = loader
        self.sampler, self.batch_size = sampler, loader.batch_size
        self.seed_loader(session)
        if isinstance(loader.batch_sampler, ElasticBatchSampler):
            self._make_plan(session, loader, loader.batch_sampler, done)

    def begin(self, session: ElasticSession, done: int) -> None:
        """The epoch's batch number `done` (starts at 0) is about to be drawn."""
        self._index = done - self.done_before
        if self.plan is not None and self._index < len(self.plan):
            session.progress.batch_samples = self.plan.sizes[self._index]
            self.loss_weight = self.plan.weight(self._index, session.strategy.global_rank)
        if session.virtual is not None:
            session.virtual.begin(self._index)
        elif session.settings.seed is not None:
            step, epoch = session.trainer.global_step, session.trainer.current_epoch
            micro_batch = (done - self.done_before) % session.trainer.accumulate_grad_batches
            rank = session.strategy.global_rank
            seed_process(seed_of(session.settings.seed, epoch, step, micro_batch, rank))

    def seed_loader(self, session: ElasticSession) -> None:
        """The workers of the iterator that is made next draw numbers of their own, by their place in the epoch."""
        if session.settings.seed is None or self.loader is None:
            return
        place = session.trainer.current_epoch, session.progress.consumed, session.strategy.global_rank
        self.loader.generator = loader_generator(seed_of(session.settings.seed, *place))

    def take_drawn(self) -> tuple[list[int], int]:
        """The running batch's samples, and how many of them (the last) are padding."""
        assert self.sampler is not None
        if self.plan is None:
            return self.sampler.take_drawn(self.batch_size)
        share = self.plan.share(self._index, self.sampler.rank)
        samples, _ = self.sampler.take_drawn(self.plan.drawn(self._index, self.sampler.rank))
        return samples, len(samples) - share

    def _make_plan(
        self, session: ElasticSession, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler, done: int
    ) -> None:
        if session.virtual is not None:
            plan: StepPlan | VirtualPlan = session.virtual.plan(session, loader, batch_sampler)
        else:
            plan = self._plan_of_policy(session, loader, batch_sampler)
        self.plan = batch_sampler.plan = plan
        self.done_before = batch_sampler.batches_done = done
        session.trainer.accumulate_grad_batches = plan.accumulate

    def _plan_of_policy(
        self, session: ElasticSession, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler
    ) -> StepPlan:
        progress, settings = session.progress, session.settings.batches
        sampler = batch_sampler.sampler
        first_step = progress.first_step or progress.batch_samples * self.accumulate
        policy = settings.policy(accumulate=self.accumulate, first_step=first_step)
        if session.in_group:
            progress.first_step = first_step
            check_world(policy, world_size=sampler.num_replicas, beginning=session.beginning)
        return StepPlan(
            policy,
            samples_left=sampler.dataset_size - sampler.cursor,
            world_size=sampler.num_replicas,
            batch_size=self.batch_size,
            drop_last=settings.tail == "drop" or loader.drop_last,
        )

    def _compare_lengths(self, session: ElasticSession, length: int) -> None:
        """Nodes that read different data would train different samples under the same numbers."""
        if self._compared or not session.in_group:
            return
        self._compared = True
        node = session.welcome.node
        if not session.beginning:
            lengths = {node: length, "the run": session.progress.dataset_size or length}
        else:
            members: list[Any] = [None] * session.generation.world_size
            dist.all_gather_object(members, (node, length))
            lengths = dict(members)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{size} on {name}" for name, size in lengths.items())
            raise SettingsError(
                f"the training data set has different lengths: {found} samples. Every node must read the same data, "
                "or the same sample number means another sample."
            )
