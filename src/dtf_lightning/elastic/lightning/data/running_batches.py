"""The running epoch's batches: where the training loader stands, and what each batch weighs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from dtf_lightning.elastic.data.combined_loaders import MODES, Place
from dtf_lightning.elastic.data.random_numbers import loader_generator, seed_of, seed_process
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.shards import ShardedElasticSampler
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler, StepPlan, check_world
from dtf_lightning.elastic.data.virtual_plan import VirtualPlan
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader, warn_of_rereading
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from dtf_lightning.elastic.lightning.session.session import ElasticSession

UNKNOWN_SIZE = 1 << 62
"""`TrainingProgress.dataset_size` where an epoch has no number of samples: streams, several loaders."""


def members_of(session: ElasticSession) -> list[str]:
    """A name for each rank, of a worker that keeps it for life; none in set-up, where ranks are provisional."""
    if not session.in_group:
        return []
    return [f"{member.id}/{local}" for member in session.generation.members for local in range(member.num_workers)]


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
        self._compared: set[int] = set()
        """Loaders whose lengths have been compared with the other members'."""
        self.accumulate = 1
        """The user's `Trainer(accumulate_grad_batches)`; a plan sets its own."""
        self.streams: StreamLoader | None = None
        """In the place of `loader` and `sampler` where the data is iterable."""
        self.mode = MODES[0]
        """How Lightning combines several loaders."""
        self._others: list[DataLoader[Any]] = []
        """Loaders besides the first."""
        self._places: list[Place] = []
        """One per loader, the first included."""
        self._done = 0
        """Batches of the epoch when the places were taken."""
        self._former: dict[str, Any] | None = None
        """`state_dict` of the generation before, or of a checkpoint."""
        self._bound = False

    def bind_loader(
        self,
        session: ElasticSession,
        loader: DataLoader[Any] | StreamLoader,
        *,
        first: bool,
        in_epoch: bool,
        recorded: bool,
    ) -> None:
        """`bind`, `bind_another` or `bind_streams`, whichever is for this loader."""
        if not first:
            self.bind_another(session, loader, in_epoch=in_epoch, recorded=recorded)
        elif isinstance(loader, StreamLoader):
            self.bind_streams(session, loader, in_epoch=in_epoch)
        else:
            self.bind(session, loader, in_epoch=in_epoch, recorded=recorded)

    def bind(self, session: ElasticSession, loader: DataLoader[Any], *, in_epoch: bool, recorded: bool) -> None:
        """Take this generation's share of what is left of the epoch.

        Raises `SettingsError` for a data set of another length than the other members', and for a global batch that is
        smaller than the world that a run begins with.
        """
        progress = session.progress
        sampler: Any = loader.sampler
        assert loader.batch_size is not None
        self._former, self._places, self._others = self.state_dict(), [], []
        self._compare_lengths(session, sampler.dataset_size)
        done = self._place(session, loader, in_epoch=in_epoch, cursor=progress.consumed, recorded=recorded)
        progress.batch_samples = session.strategy.world_size * loader.batch_size
        progress.dataset_size = sampler.dataset_size
        if self.sampler is not None:
            sampler.adopt_order(self.sampler)
        self.loader = loader
        self.sampler, self.batch_size = sampler, loader.batch_size
        self.seed_loader(session)
        if isinstance(loader.batch_sampler, ElasticBatchSampler):
            self._make_plan(session, loader, loader.batch_sampler, done)
        if isinstance(sampler, ShardedElasticSampler):
            sizes = self.plan.sizes if self.plan is not None else None
            sampler.settle(self._former_part("shards"), members=members_of(session), in_epoch=in_epoch, sizes=sizes)

    def bind_another(
        self, session: ElasticSession, loader: DataLoader[Any] | StreamLoader, *, in_epoch: bool, recorded: bool
    ) -> None:
        """The same for each further loader of a combined one. Raises `SettingsError` for what has to be the only one."""
        progress, first = session.progress, self.loader
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
        if session.trainer.limit_train_batches not in (None, 1.0) and isinstance(
            session.trainer.limit_train_batches, float
        ):
            raise SettingsError(
                f"Trainer(limit_train_batches={session.trainer.limit_train_batches}) with several training loaders: a share "
                "of which of them cannot be told after a rescale. Give a number of batches."
            )
        for sampler in (first.sampler, loader.sampler):
            assert isinstance(sampler, ElasticDistributedSampler)
            sampler.cycled = True
        assert loader.batch_size is not None
        another: Any = loader.sampler
        self._compare_lengths(session, another.dataset_size)
        self._place(session, loader, in_epoch=in_epoch, cursor=0, recorded=recorded)
        self._others.append(loader)
        # What counts an epoch's progress is all samples, whichever loader they come from.
        progress.batch_samples += session.strategy.world_size * loader.batch_size
        progress.dataset_size = UNKNOWN_SIZE

    def bind_streams(self, session: ElasticSession, loader: StreamLoader, *, in_epoch: bool) -> None:
        """The same for iterable data. Raises `SettingsError` for another number of streams than the others have."""
        progress, trainer = session.progress, session.trainer
        self._former, self._places, self._others = self.state_dict(), [], []
        self._compare_lengths(session, loader.places.num_streams, "streams")
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if in_epoch else 0
        if session.in_group:
            rank = session.strategy.global_rank
            former = self._former_part("streams")
            loader.places.bind(former, members=members_of(session), rank=rank, epoch=trainer.current_epoch, done=done)
            if session.beginning:
                warn_of_rereading(loader.dataset)
        progress.dataset_size = UNKNOWN_SIZE
        self.streams, self._bound, self._done = loader, session.in_group, done
        self.seed_loader(session)

    def _place(
        self, session: ElasticSession, loader: DataLoader[Any], *, in_epoch: bool, cursor: int, recorded: bool
    ) -> int:
        """Put the next loader's sampler where it stands; returns how many batches of the epoch are done."""
        trainer, sampler = session.trainer, loader.sampler
        assert isinstance(sampler, ElasticDistributedSampler)
        assert loader.batch_size is not None
        world_size = session.strategy.world_size
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed if in_epoch else 0
        former = self._former if in_epoch else None
        index, again = len(self._places), False
        if index and done and (former is None or index >= len(former["places"])):
            raise SettingsError(
                f"the position in mid-epoch does not say where training loader number {index + 1} stands; resume from a "
                "checkpoint of a run with the same loaders, or of an epoch's end"
            )
        if done and former is not None and not isinstance(sampler, ShardedElasticSampler):
            for kind in ("shards", "streams"):
                if former[kind] is not None:
                    raise SettingsError(
                        f"the position in mid-epoch is one of {kind}, the training loader has a plain data set; resume with "
                        "the same data set, or from a checkpoint of an epoch's end"
                    )
        if former is not None and len(former["places"]) > 1:
            cursor, again = Place(**former["places"][index]).after(done - former["done"], former["mode"])
        sampler.rebind(
            rank=session.strategy.global_rank,
            num_replicas=world_size,
            epoch=trainer.current_epoch,
            cursor=cursor if in_epoch else 0,
            done_here=done * loader.batch_size,
        )
        sampler.again = again
        if recorded:
            sampler.drawn = deque()
        per_rank = [sampler.remaining(start) // world_size for start in (sampler.cursor, 0)]
        left, whole = (
            count // loader.batch_size if loader.drop_last else -(-count // loader.batch_size) for count in per_rank
        )
        place = Place(
            cursor=sampler.cursor,
            again=again,
            size=sampler.dataset_size,
            per_batch=world_size * loader.batch_size,
            left=left,
            whole=max(1, whole),
        )
        self._places.append(place)
        self._bound, self._done = session.in_group, done
        return done

    def state_dict(self) -> dict[str, Any] | None:
        """Where each loader stood when the generation began, from which any later position follows."""
        if not self._bound:
            return self._former
        sharded = self.sampler if isinstance(self.sampler, ShardedElasticSampler) else None
        return {
            "done": self._done,
            "mode": self.mode,
            "places": [place.to_json() for place in self._places],
            "shards": sharded.state_dict() if sharded is not None else None,
            "streams": self.streams.places.state_dict() if self.streams is not None else None,
        }

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        self._former, self._bound = state, False

    def _length_in_run(self, index: int) -> int:
        """Samples that the loader has for the members that have trained, or streams; 0 where they did not say."""
        if self._former is None:
            return 0
        streams, places = self._former["streams"], self._former["places"]
        if streams is not None:
            return len(streams["owners"])
        return int(places[index]["size"]) if index < len(places) else 0

    def _former_part(self, name: str) -> dict[str, Any] | None:
        part: dict[str, Any] | None = self._former[name] if self._former is not None else None
        return part

    def begin(self, session: ElasticSession, done: int) -> None:
        """The epoch's batch number `done` (starts at 0) is about to be drawn."""
        self._index = done - self.done_before
        if self.streams is not None:
            boundary = session.progress.boundary  # of the epoch before, at an epoch's first batch
            self.streams.places.forget_before(min(done, boundary.batches_in_epoch) if boundary is not None else 0)
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

    def drawn(self, session: ElasticSession) -> None:
        """The batch that has begun is there: only now is it known how much of it streams had left."""
        if self.streams is not None:
            batch = self._index + self.done_before
            session.progress.batch_samples = self.streams.places.samples_of(batch)
            self.loss_weight = self.streams.places.weight_of(batch)

    def seed_loader(self, session: ElasticSession) -> None:
        """The workers of the iterator that is made next draw numbers of their own, by their place in the epoch."""
        if session.settings.seed is None:
            return
        place = session.trainer.current_epoch, session.progress.consumed, session.strategy.global_rank
        for index, loader in enumerate([self.streams or self.loader, *self._others]):
            if loader is not None:
                # The first loader's place has no index: it is what it was when there was only one.
                loader.generator = loader_generator(seed_of(session.settings.seed, *place, *([index] if index else [])))

    @property
    def num_streams(self) -> int | None:
        """Of iterable data."""
        return self.streams.places.num_streams if self.streams is not None else None

    @property
    def num_samples(self) -> int | None:
        """That an epoch has, over all loaders; `None` where nobody knows."""
        if self.sampler is None:
            return None
        others: list[Any] = [loader.sampler for loader in self._others]
        return self.sampler.dataset_size + sum(int(sampler.dataset_size) for sampler in others)

    def draws(self) -> Iterator[tuple[list[int], int]]:
        """The running batch's samples, and how many of them (the last) are padding; for each loader that gave any.

        Of several loaders each has numbers of its own, one loader's behind the other's.
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

    def _compare_lengths(self, session: ElasticSession, length: int, unit: str = "samples") -> None:
        """Nodes that read different data would train different samples under the same numbers."""
        index = len(self._places)
        if index in self._compared or not session.in_group:
            return
        self._compared.add(index)
        node = session.welcome.node
        if not session.beginning:
            lengths = {node: length, "the run": self._length_in_run(index) or session.progress.dataset_size or length}
        else:
            members: list[Any] = [None] * session.generation.world_size
            dist.all_gather_object(members, (node, length))
            lengths = dict(members)
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{size} on {name}" for name, size in lengths.items())
            raise SettingsError(
                f"the training data set has different lengths: {found} {unit}. Every node must read the same data, "
                "or the same sample number means another sample."
            )
