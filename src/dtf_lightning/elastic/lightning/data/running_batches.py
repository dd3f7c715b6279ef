"""`RunningBatches` tracks the current epoch's batches: the training loaders' positions and each batch's loss weight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.data.combined_loaders import SHORTEST, Place
from dtf_lightning.elastic.data.left_out import Rest
from dtf_lightning.elastic.data.random_numbers import loader_generator, seed_of, seed_process
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.shards import ShardedElasticSampler
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler, StepPlan, check_world
from dtf_lightning.elastic.data.virtual_plan import VirtualPlan
from dtf_lightning.elastic.lightning.data.gradients import Gradients
from dtf_lightning.elastic.lightning.data.loader_places import LoaderPlaces
from dtf_lightning.elastic.lightning.data.same_loaders import SameLoaders, describe_evaluation, describe_training
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader, warn_of_rereading
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

UNKNOWN_SIZE = 1 << 62
"""Value of `TrainingProgress.dataset_size` where an epoch's number of samples is unknown: streams, several loaders."""


class RunningBatches:
    """Track one worker's batches; loaders are bound anew for each epoch and each generation.

    Args:
        node: name of this worker's node, for error messages.
    """

    def __init__(
        self, trainer: Any, progress: TrainingProgress, settings: RunSettings, gradients: Gradients, *, node: str
    ) -> None:
        self._trainer = trainer
        self._progress = progress
        self._settings = settings
        self._gradients = gradients
        self.loader: DataLoader[Any] | None = None
        self._others: list[DataLoader[Any]] = []
        """Training loaders besides the first."""
        self.streams: StreamLoader | None = None
        """The loader of iterable data, in place of `loader`."""
        self.plan: StepPlan | VirtualPlan | None = None
        """The plan of steps; `None` where every rank's batches have the loader's size, padded or cut at the epoch's end."""
        self.done_before = 0
        """Number of the epoch's batches before the plan began; 0 without a plan."""
        self.loss_weight = 1.0
        """Loss weight of the current batch."""
        self.accumulate: int = trainer.accumulate_grad_batches
        """The user's `Trainer(accumulate_grad_batches)`; a plan sets one of its own in the trainer."""
        self.places = LoaderPlaces()
        self._index = 0
        self._same_loaders = SameLoaders(node)

    @property
    def sampler(self) -> ElasticDistributedSampler | None:
        """Sampler of the first loader; `None` before `bind_loader`, and for streams."""
        sampler: Any = self.loader.sampler if self.loader is not None else None
        return sampler  # type: ignore[no-any-return]

    @property
    def batch_size(self) -> int:
        """Samples per batch of the first loader; 0 before `bind_loader`, and for streams."""
        return (self.loader.batch_size or 0) if self.loader is not None else 0

    # --- bound to a world --------------------------------------------------------------------------------------------

    def bind_loader(
        self, world: World, loader: DataLoader[Any] | StreamLoader, *, first: bool, in_epoch: bool, recorded: bool
    ) -> None:
        """Set a loader to this worker's share of the rest of the epoch.

        Args:
            first: whether this is the first loader; Lightning may combine others with it.
            in_epoch: whether the epoch has begun.
            recorded: whether each drawn sample is kept for the ledger.

        Raises `SettingsError` if the members' loaders differ (`RunRefused` on a newcomer), if a global batch is smaller
        than the world that the run begins with, and for loaders that cannot be combined.
        """
        if not first:
            self._bind_another(world, loader, in_epoch=in_epoch, recorded=recorded)
        elif isinstance(loader, StreamLoader):
            self._bind_streams(world, loader, in_epoch=in_epoch)
        else:
            self._bind(world, loader, in_epoch=in_epoch, recorded=recorded)

    def _bind(self, world: World, loader: DataLoader[Any], *, in_epoch: bool, recorded: bool) -> None:
        progress = self._progress
        sampler: Any = loader.sampler
        assert loader.batch_size is not None
        self.places.begin_anew(self.state_dict())
        self._others = []
        self._agree(world, loader)
        done = self._place(world, loader, in_epoch=in_epoch, cursor=progress.consumed, recorded=recorded)
        progress.batch_samples = world.size * loader.batch_size
        progress.dataset_size = sampler.dataset_size
        if self.sampler is not None:
            sampler.adopt_order(self.sampler)
        self.loader = loader
        self.seed_loader(world.rank)
        if isinstance(loader.batch_sampler, ElasticBatchSampler):
            self._make_plan(world, loader, loader.batch_sampler, done)
        if isinstance(sampler, ShardedElasticSampler):
            sizes = self.plan.sizes if self.plan is not None else None
            members = list(world.workers)
            sampler.settle(self.places.former_part("shards"), members=members, in_epoch=in_epoch, sizes=sizes)

    def _bind_another(
        self, world: World, loader: DataLoader[Any] | StreamLoader, *, in_epoch: bool, recorded: bool
    ) -> None:
        """Bind another loader of a combined one."""
        progress, first, limit = self._progress, self.loader, self._trainer.limit_train_batches
        if self.streams is not None or first is None or isinstance(loader, StreamLoader) or self.plan is not None:
            raise SettingsError(
                "this run has several training loaders, and one of them is of iterable data, or steps are planned ahead "
                "(batch='global', tail='exact', a policy of your own), which is possible with one loader only. Combine "
                "the data sets (torch.utils.data.ConcatDataset, StackDataset) into one DataLoader."
            )
        if isinstance(loader.sampler, ShardedElasticSampler) or isinstance(self.sampler, ShardedElasticSampler):
            raise SettingsError(
                "this run has several training loaders, and one has data in shards; it must be the only one"
            )
        if isinstance(limit, float) and limit != 1.0:
            raise SettingsError(
                f"Trainer(limit_train_batches={limit}) with several training loaders: a share "
                "of which of them cannot be told after a rescale. Give a number of batches."
            )
        for sampler in (first.sampler, loader.sampler):
            assert isinstance(sampler, ElasticDistributedSampler)
            sampler.cycled = True
        assert loader.batch_size is not None
        self._agree(world, loader)
        self._place(world, loader, in_epoch=in_epoch, cursor=0, recorded=recorded)
        self._others.append(loader)
        # An epoch's progress counts all samples, whichever loader they come from.
        progress.batch_samples += world.size * loader.batch_size
        progress.dataset_size = UNKNOWN_SIZE

    def _bind_streams(self, world: World, loader: StreamLoader, *, in_epoch: bool) -> None:
        """Bind the loader of iterable data; the members must have the same number of streams."""
        trainer = self._trainer
        self.places.begin_anew(self.state_dict())
        self._others = []
        self._agree(world, loader)
        done = self._batches_done(in_epoch=in_epoch)
        if world.formed:
            former, members = self.places.former_part("streams"), list(world.workers)
            loader.places.bind(former, members=members, rank=world.rank, epoch=trainer.current_epoch, done=done)
            if world.first:
                warn_of_rereading(loader.dataset)
        self._progress.dataset_size = UNKNOWN_SIZE
        self.streams = loader
        self.places.bound(done=done, formed=world.formed)
        self.seed_loader(world.rank)

    def _place(self, world: World, loader: DataLoader[Any], *, in_epoch: bool, cursor: int, recorded: bool) -> int:
        """Set the next loader's sampler to its position; return the number of the epoch's batches that are done."""
        sampler = loader.sampler
        assert isinstance(sampler, ElasticDistributedSampler)
        assert loader.batch_size is not None
        done = self._batches_done(in_epoch=in_epoch)
        sharded = isinstance(sampler, ShardedElasticSampler)
        cursor, again = self.places.where_next_stood(cursor, done=done, in_epoch=in_epoch, sharded=sharded)
        sampler.rebind(
            rank=world.rank,
            num_replicas=world.size,
            epoch=self._trainer.current_epoch,
            cursor=cursor if in_epoch else 0,
            done_here=done * loader.batch_size,
        )
        sampler.again = again
        if recorded:
            sampler.drawn = deque()
        per_rank = [sampler.remaining(start) // world.size for start in (sampler.cursor, 0)]
        left, whole = (
            count // loader.batch_size if loader.drop_last else -(-count // loader.batch_size) for count in per_rank
        )
        place = Place(
            cursor=sampler.cursor,
            again=again,
            size=sampler.dataset_size,
            per_batch=world.size * loader.batch_size,
            left=left,
            whole=max(1, whole),
        )
        self.places.take(place, done=done, formed=world.formed)
        return done

    def _batches_done(self, *, in_epoch: bool) -> int:
        batches: Any = self._trainer.fit_loop.epoch_loop.batch_progress
        return int(batches.current.completed) if in_epoch else 0

    def state_dict(self) -> dict[str, Any] | None:
        """Return each loader's position at the generation's start, from which any later position follows."""
        sharded = self.sampler if isinstance(self.sampler, ShardedElasticSampler) else None
        return self.places.state_dict(
            shards=sharded.state_dict() if sharded is not None else None,
            streams=self.streams.places.state_dict() if self.streams is not None else None,
        )

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self.places.load_state_dict(state)

    # --- batch by batch ----------------------------------------------------------------------------------------------

    def begin(self, done: int, rank: int) -> None:
        """Prepare for the epoch's batch number `done` (starting at 0), before it is drawn."""
        self._index = done - self.done_before
        if self.streams is not None:
            boundary = self._progress.boundary  # still of the previous epoch at an epoch's first batch
            self.streams.places.forget_before(min(done, boundary.batches_in_epoch) if boundary is not None else 0)
        if self.plan is not None and self._index < len(self.plan):
            self._progress.batch_samples = self.plan.sizes[self._index]
            self.loss_weight = self.plan.weight(self._index, rank)
        self._gradients.begin(self._index)
        if self._settings.seed is not None and not self._gradients.seeds_batches:
            step, epoch = self._trainer.global_step, self._trainer.current_epoch
            micro_batch = (done - self.done_before) % self._trainer.accumulate_grad_batches
            seed_process(seed_of(self._settings.seed, epoch, step, micro_batch, rank))

    def drawn(self) -> None:
        """Take note that the batch is drawn: only now is it known how many samples streams gave for it."""
        if self.streams is not None:
            batch = self._index + self.done_before
            self._progress.batch_samples = self.streams.places.samples_of(batch)
            self.loss_weight = self.streams.places.weight_of(batch)

    def seed_loader(self, rank: int) -> None:
        """Seed the worker processes of the iterator that is made next, by the rank and the position in the epoch."""
        seed = self._settings.seed
        if seed is None:
            return
        place = self._trainer.current_epoch, self._progress.consumed, rank
        for index, loader in enumerate([self.streams or self.loader, *self._others]):
            if loader is not None:
                # The first loader's seed has no index, so that it is the same as with a single loader.
                loader.generator = loader_generator(seed_of(seed, *place, *([index] if index else [])))

    @property
    def num_streams(self) -> int | None:
        """Number of streams of iterable data; `None` for other data."""
        return self.streams.places.num_streams if self.streams is not None else None

    @property
    def num_samples(self) -> int | None:
        """Number of samples in all loaders' data sets; `None` where it is unknown."""
        if self.sampler is None:
            return None
        others: list[Any] = [loader.sampler for loader in self._others]
        return self.sampler.dataset_size + sum(int(sampler.dataset_size) for sampler in others)

    def draws(self) -> Iterator[tuple[list[int], int]]:
        """Yield, for each loader, the current batch's sample numbers, and how many of them (the last ones) are padding.

        With several loaders, a loader's sample numbers start where those of the loader before it end.
        """
        if self.streams is not None:
            yield self.streams.places.drawn_in(self._index + self.done_before), 0
        elif self.sampler is not None and self.plan is not None:
            share = self.plan.share(self._index, self.sampler.rank)
            samples, _ = self.sampler.take_drawn(self.plan.drawn(self._index, self.sampler.rank))
            yield samples, len(samples) - share
        elif self.sampler is not None:
            yield self.sampler.take_drawn(self.batch_size)
            before = self.sampler.dataset_size
            for loader in self._others:
                sampler: Any = loader.sampler
                samples, padding = sampler.take_drawn(loader.batch_size)
                if samples:
                    yield [before + sample for sample in samples], padding
                before += sampler.dataset_size

    def rest(self, done: int) -> Rest:
        """Return what the epoch has not consumed after `done` batches."""
        if self.sampler is None:
            return Rest(size=None, unseen=None)
        if self.plan is not None:
            begun = self.sampler.cursor
            seen, at_end = ([begun + sum(self.plan.sizes[:n])] for n in (done - self.done_before, len(self.plan)))
        else:
            seen, at_end = self.places.seen(done), self.places.seen_at_end()
        others: list[Any] = [loader.sampler for loader in self._others]
        samplers: list[ElasticDistributedSampler] = [self.sampler, *others]
        own_orders = [type(sampler).__name__ for sampler in samplers if sampler.own_order]
        why = "the rest that does not fill a batch"
        if own_orders:
            why = f"{own_orders[0]} leaves them out"
        elif len(samplers) > 1 and self.places.mode == SHORTEST:
            why = f"CombinedLoader(mode={SHORTEST!r})"
        return Rest(
            size=sum(sampler.unseen(0) for sampler in samplers),
            unseen=sum(sampler.unseen(cursor) for sampler, cursor in zip(samplers, seen, strict=True)),
            dropped=sum(sampler.unseen(cursor) for sampler, cursor in zip(samplers, at_end, strict=True)),
            why_dropped=why,
        )

    # --- steps that are planned ahead --------------------------------------------------------------------------------

    def _make_plan(self, world: World, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler, done: int) -> None:
        plan: StepPlan | VirtualPlan | None = self._gradients.plan(loader, batch_sampler)
        if plan is None:
            plan = self._plan_of_policy(world, loader, batch_sampler)
        self.plan = batch_sampler.plan = plan
        self.done_before = batch_sampler.batches_done = done
        self._trainer.accumulate_grad_batches = plan.accumulate

    def _plan_of_policy(self, world: World, loader: DataLoader[Any], batch_sampler: ElasticBatchSampler) -> StepPlan:
        progress, settings = self._progress, self._settings.batches
        sampler = batch_sampler.sampler
        first_step = progress.first_step or progress.batch_samples * self.accumulate
        policy = settings.policy(accumulate=self.accumulate, first_step=first_step)
        if world.formed:
            progress.first_step = first_step
            check_world(policy, world_size=sampler.num_replicas, beginning=world.first)
        return StepPlan(
            policy,
            samples_left=sampler.dataset_size - sampler.cursor,
            world_size=sampler.num_replicas,
            batch_size=self.batch_size,
            drop_last=settings.tail == "drop" or loader.drop_last,
        )

    def _agree(self, world: World, loader: DataLoader[Any] | StreamLoader) -> None:
        """Refuse nodes that read other data, or divide it in another way, before the loader has a place in the epoch."""
        if not world.formed:
            return
        index = len(self.places)
        description = describe_training(loader)
        if isinstance(loader.sampler, ElasticDistributedSampler):
            loader.sampler.epoch = self._trainer.current_epoch  # an order of the user's own is compared for this epoch
        what = "the training loader" if not index else f"training loader {index}"
        self._same_loaders.agree(what, description, generation=world.generation.number)

    def agree_on_evaluation(self, world: World, loader: Any) -> None:
        """Refuse nodes whose validation has other batches: they would wait for one another in its collectives.

        All members make their validation loaders together; before the world is formed each makes them for itself.
        """
        if world.formed:
            generation = world.generation.number
            self._same_loaders.agree("the validation loader", describe_evaluation(loader), generation=generation)
