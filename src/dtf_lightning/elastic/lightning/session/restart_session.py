"""One worker's part in a run whose workers are started anew on every change, under any rendezvous of torchelastic.

The life of a worker, as in `session.py`, with these differences:

1. there is no agent to check in with: the workers meet on torchelastic's store when `ElasticCallback` is constructed,
   and the world is the real one from the start;
2. `attach`: all agree on which run this is, and which life of it, from what the nodes remember (`RunRecord`);
3. `enter`: the newest intact state among snapshots and checkpoints becomes everybody's (`restart_sources.py`);
4. while training, `snapshot_every_n_steps` puts a snapshot into the node's memory;
5. SIGTERM, or a peer that is lost: back to the last committed step, cut the process group so that nobody waits for this
   worker, write a snapshot, exit. Nobody has to agree on the step: a peer that is in the next one cannot commit it
   alone and rolls it back, and after the restart the newest position wins;
6. the end: all arrive, then every node forgets the run.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import time
import uuid
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch.distributed as dist

from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.collectives.restart_meeting import agree_on_word, connect
from dtf_lightning.elastic.lightning.rewind.schedulers import hold_at_the_end
from dtf_lightning.elastic.lightning.session.compatibility import refuse_optimizers
from dtf_lightning.elastic.lightning.session.fingerprint import parameter_signature, session_fingerprint
from dtf_lightning.elastic.lightning.session.restart_link import RestartLink
from dtf_lightning.elastic.lightning.session.restart_sources import checkpoint_folders, resume
from dtf_lightning.elastic.lightning.session.session import ElasticSession, StopForRescale, WorkerLeft
from dtf_lightning.elastic.lightning.session.settings import SessionSettings
from dtf_lightning.elastic.lightning.session.signals import stopping_signals
from dtf_lightning.elastic.lightning.session.snapshotter import Snapshotter
from dtf_lightning.elastic.lightning.session.start_world import seen_by
from dtf_lightning.elastic.lightning.session.state_sharing import go_to_loaded_position
from dtf_lightning.elastic.link.worker_link import WorkerLink
from dtf_lightning.elastic.observe.time_account import Bucket
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.snapshots.format import SnapshotHeader
from dtf_lightning.elastic.snapshots.node import NodeSnapshots, RunRecord, agent_name, last_record, run_key
from dtf_lightning.environment import TorchelasticWorld
from dtf_lightning.errors import DtfError, SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

PEER_PATIENCE = 10.0
"""Seconds that a worker which has lost a peer waits to be stopped by its agent, before it fails by itself: that would be
counted as a failure of its own node."""
STOPPED = 143
"""Exit code, as of a process that SIGTERM has ended: the agent must not take it for success."""
NOT_OF_THE_RUN = ("optimizer", "Trainer(max_epochs)", "Trainer(max_steps)")
"""Settings that are not known yet when the run is looked for, or that may change: training goes on for longer."""


class WorkerStopped(WorkerLeft):
    """This worker was asked to stop, and has written what it has to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.code = STOPPED


@dataclass(frozen=True)
class _Peer:
    """What each rank says of itself when the workers meet."""

    host: str
    node: str
    num_local: int
    settings: dict[str, str]
    records: tuple[RunRecord, ...]
    fresh: str
    """The instance's name if this rank is 0 and nobody knows the run."""


class RestartSession(ElasticSession):
    """See the module's docstring. Raises torch's errors when the workers do not come together."""

    def __init__(self, world: TorchelasticWorld, settings: SessionSettings) -> None:
        self._world = world
        self._leaving = RestartLink(world)
        super().__init__(settings, cast("WorkerLink", self._leaving), GenerationGroup())
        meeting = connect(world)
        self._meeting: dist.Store | None = meeting  # kept: rank 0 may host it
        self._word = agree_on_word(meeting, world.rank, world.world_size)
        self.group.form_local(
            host=world.store_host,
            port=world.store_port,
            prefix=f"{self._word}/setup",
            rank=world.rank,
            world_size=world.world_size,
        )
        self.node: NodeSnapshots
        self.record: RunRecord
        self.hosts: list[str] = []
        """Every rank's."""
        self.signature = ""
        self.snapshotter = Snapshotter(self)
        self._lost: Exception | None = None
        """The failed collective that stopped this worker."""

    # --- 1 set-up ----------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer
        self.batches.accumulate = trainer.accumulate_grad_batches
        self._agree_on_run(trainer)
        super().attach(trainer)

    def _agree_on_run(self, trainer: pl.Trainer) -> None:
        """Find out which run this is and which life of it; the same on all ranks.

        Raises `SettingsError` when ranks run different scripts or settings.
        """
        settings = {name: text for name, text in session_fingerprint(self).items() if name not in NOT_OF_THE_RUN}
        self.node = NodeSnapshots(
            self.settings.snapshots,
            key=run_key(self.welcome.run_id, settings, agent_name()),
            run_dir=self.run_dir(trainer),
            agent=agent_name(),
        )
        peers = self._gather(
            _Peer(
                host=socket.gethostname(),
                node=self.welcome.node,
                num_local=self.welcome.num_local_workers,
                settings=settings,
                records=tuple(self.node.records()),
                fresh=uuid.uuid4().hex,
            )
        )
        _refuse_differences(peers)
        self.hosts = [peer.host for peer in peers]
        last = last_record([record for peer in peers for record in peer.records])
        number = last.generation + 1 if last is not None else 1
        self.generation = Generation(
            number=number,
            members=_members(peers, number),
            reason="the workers started" if last is None else f"the workers were started anew, life {number}",
            kind="start" if last is None else _kind(last.world_size, self._world.world_size),
            instance=last.instance if last is not None else peers[0].fresh,
            store_host=self._world.store_host,
            store_port=self._world.store_port,
            formed_at=time.time(),
        )
        self.record = RunRecord(
            instance=self.generation.instance,
            generation=number,
            written_at=time.time(),
            world_size=self._world.world_size,
            checkpoint_folders=last.checkpoint_folders if last is not None else (),
        )
        self.welcome = replace(self.welcome, joiner=last is not None, incarnation=number)
        self.recorder.known_as(self.welcome)
        if self._world.local_rank == 0:
            self.node.remove_foreign(self.generation.instance)

    # --- 2 entering the world ----------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Form the process group and go on with the newest state that anybody has.

        Raises:
            WorkerStopped: the agent wants the workers to end already.
            SettingsError: ranks have different models.
        """
        refuse_optimizers(self.trainer)
        self._raise_if_leaving()
        hold_at_the_end(self.trainer)
        self.configured_for = seen_by(self.trainer)
        if self.virtual is not None:
            self.virtual.refuse_superfluous(self._world.rank, self._world.world_size, self.welcome.node)
        self.signature = self._signature()
        folders = checkpoint_folders(self.trainer)
        known = dict.fromkeys((*self.record.checkpoint_folders, *folders))
        self.record = replace(self.record, checkpoint_folders=tuple(known))
        signatures = self._gather(self.signature)  # also the place where the slowest set-up is waited for
        if len(set(signatures)) > 1:
            raise SettingsError(
                "the ranks' models or optimizers differ (names, types or shapes of parameters); all must train the same"
            )
        if self.loaded_position is not None:
            go_to_loaded_position(self, self.loaded_position)
        self.group.destroy()
        self.clock.mark("wait")
        self._form(self._leaving.assignment(self.generation.to_json()))
        self.clock.mark("group")
        restored = resume(self)
        self.clock.mark("state")
        if self._world.local_rank == 0:
            self.node.remember(self.record)
        self._begin(sync_weights=not restored)

    def _signature(self) -> str:
        """Of what a snapshot fits into."""
        optimizers = [type(optimizer).__name__ for optimizer in self.trainer.optimizers]
        text = "\n".join((*parameter_signature(self.trainer.lightning_module), *optimizers))
        return hashlib.sha256(text.encode()).hexdigest()

    def _store_prefix(self) -> str:
        return f"{self._word}/train"

    def _gather(self, mine: Any) -> list[Any]:
        """Every rank's, in rank order."""
        everyone: list[Any] = [None] * self._world.world_size
        dist.all_gather_object(everyone, mine)
        return everyone

    def signals(self) -> AbstractContextManager[None]:
        return stopping_signals(self._leaving.leaving, self._leaving.is_leaving)

    # --- 3 training --------------------------------------------------------------------------------------------------

    def before_batch(self) -> None:
        super().before_batch()
        boundary = self.progress.boundary
        if (
            boundary is not None
            and boundary.batches_total == self.trainer.fit_loop.epoch_loop.batch_progress.total.ready
        ):
            self.snapshotter.at_boundary(self.trainer.global_step)

    def before_validation_batch(self) -> None:
        if not self._leaving.is_leaving():
            return
        if self.trainer.sanity_checking:
            raise WorkerStopped(self._leaving.reason)
        if self.in_group and not self.over:
            raise StopForRescale  # a validation may take longer than the agent waits; it is done again

    def before_optimizer_step(self) -> None:
        self.snapshotter.wait_until_copied()
        super().before_optimizer_step()

    def after_batch(self) -> None:
        self.snapshotter.wait_until_copied()  # of an accumulation: what follows a batch may change weights
        super().after_batch()

    def header(self, reason: str) -> SnapshotHeader:
        """Of a snapshot taken now."""
        return SnapshotHeader(
            instance=self.generation.instance,
            signature=self.signature,
            generation=self.generation.number,
            position=replace(self.progress.position(self.trainer), trained=False),
            world_size=self._world.world_size,
            reason=reason,
            local_rank=self._world.local_rank,
        )

    @property
    def writes_periodically(self) -> bool:
        """All of a node's workers hold the same state: one writes it."""
        return self._world.local_rank == 0

    # --- 4 stopping --------------------------------------------------------------------------------------------------

    def should_rescale(self, error: BaseException) -> bool:
        """Whether this exception is the workers' end on a change; if not, it is this process's own."""
        self.recorder.sample(self.trainer, failing=True)
        self.clock.start()
        if isinstance(error, StopForRescale):
            return True
        if isinstance(error, Exception) and not isinstance(error, DtfError) and is_communication_error(error):
            self._lost = error
            return True
        if not isinstance(error, WorkerLeft):
            self.recorder.ended(f"{type(error).__name__}: {error}"[:2000], self.trainer.global_step)
            self.group.cut()
            self.group.hang_up()
        return False

    def unwind(self, error: BaseException) -> None:
        self.group.cut()
        self.group.hang_up()  # at once: whoever is in the next step's collectives waits for this worker
        self.snapshotter.wait_until_copied()
        super().unwind(error)

    def leave_if_asked(self) -> None:
        """Write the snapshot, then end.

        Raises:
            WorkerStopped: always, but
            RuntimeError: a peer was lost and nobody has stopped this worker.
        """
        lost = self._lost
        reason = self._leaving.reason or f"a peer was lost ({lost})".splitlines()[0][:300]
        if self.progress.trained:
            self.snapshotter.last("stopped" if lost is None else "a peer was lost")
        if lost is not None and not self._leaving.wait_to_leave(PEER_PATIENCE):
            self.recorder.ended(reason, self.trainer.global_step)
            raise RuntimeError(
                f"a peer was lost and no agent has stopped this worker within {PEER_PATIENCE:g} s; it ends so that it "
                "is started anew"
            ) from lost
        self.recorder.ended(reason, self.trainer.global_step)
        log.info("this worker stops at step %d: %s", self.trainer.global_step, reason)
        raise WorkerStopped(reason)

    def _raise_if_leaving(self) -> None:
        if self._leaving.is_leaving():
            raise WorkerStopped(self._leaving.reason)

    # --- 5 the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Come to the end of training together, then forget the run on every node.

        Raises torch's errors when a member died before it had finished: training is not over then.
        """
        self.recorder.sample(self.trainer)
        self.recorder.account.enter(Bucket.WAITING)
        dist.barrier()
        self.over = True
        self.recorder.ended("finished", self.trainer.global_step)
        if self.ledger is not None:
            self.ledger.end(
                generation=self.generation.number, rank=self.strategy.global_rank, step=self.trainer.global_step
            )
        self.snapshotter.close()
        if self._world.local_rank == 0:
            self.node.remove(replace(self.record, finished=True, written_at=time.time()))

    def close(self) -> None:
        self.snapshotter.close()
        with suppress(AttributeError):  # never attached to a trainer
            self.node.close()
        super().close()
        self._meeting = None


def _kind(before: int, now: int) -> str:
    if now == before:
        return "failure"
    return "join" if now > before else "leave"


def _members(peers: list[_Peer], incarnation: int) -> tuple[Member, ...]:
    """The nodes in rank order."""
    first = {peer.node: peer for peer in reversed(peers)}
    return tuple(
        Member(node=node, incarnation=incarnation, num_workers=first[node].num_local, host=first[node].host)
        for node in dict.fromkeys(peer.node for peer in peers)
    )


def _refuse_differences(peers: list[_Peer]) -> None:
    for rank, peer in enumerate(peers):
        for name, text in peers[0].settings.items():
            if peer.settings.get(name) != text:
                raise SettingsError(
                    f"rank 0 on {peers[0].host} has {name}={text!r}, rank {rank} on {peer.host} "
                    f"{peer.settings.get(name)!r}; all workers of a run must have the same"
                )
