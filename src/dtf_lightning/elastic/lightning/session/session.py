"""One worker's part in a live run (`restart_session.py` has the other kind): from check-in to the last generation.

The life of a worker, in the order of this file's methods:

1. check in with the agent when `ElasticCallback` (or `ElasticDDPStrategy`) is constructed, set up alone;
2. `enter` a generation: form its process group, agree on the newest state, receive it if somebody else has it;
3. train; at each optimizer-step boundary look whether a planned rescale stops here (one attribute read);
4. when an exception comes up through the loops, `should_rescale` tells a rescale from the user's own error;
5. `unwind`: back to a clean, resumable position without a process group; then 2 again, or leave;
6. `finish` with the others.
"""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning import environment
from dtf_lightning.elastic.collectives.communication import is_communication_error
from dtf_lightning.elastic.collectives.process_group import GenerationGroup
from dtf_lightning.elastic.collectives.warm_up import warm_up
from dtf_lightning.elastic.lightning.data.running_batches import RunningBatches
from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader
from dtf_lightning.elastic.lightning.data.virtual_ranks import VirtualRanks
from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.reporting.elastic_scalars import ElasticScalars
from dtf_lightning.elastic.lightning.reporting.rank_zero import set_rank_zero
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.reporting.run_log import RunLog
from dtf_lightning.elastic.lightning.reporting.straggler_probe import Pace
from dtf_lightning.elastic.lightning.rewind import unwinding
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress
from dtf_lightning.elastic.lightning.rewind.schedulers import hold_at_the_end
from dtf_lightning.elastic.lightning.rewind.undo import Undo
from dtf_lightning.elastic.lightning.session import reporter
from dtf_lightning.elastic.lightning.session.cluster_environment import ElasticEnvironment, accept_any_world
from dtf_lightning.elastic.lightning.session.compatibility import refuse_optimizers
from dtf_lightning.elastic.lightning.session.fingerprint import parameter_signature, session_fingerprint
from dtf_lightning.elastic.lightning.session.settings import SessionSettings
from dtf_lightning.elastic.lightning.session.signals import graceful_signals
from dtf_lightning.elastic.lightning.session.start_world import Beginning, seen_by
from dtf_lightning.elastic.lightning.session.state_sharing import go_to_loaded_position, share_state
from dtf_lightning.elastic.link.messages import Assign, Happened
from dtf_lightning.elastic.link.worker_link import RunFinished, WorkerLink
from dtf_lightning.elastic.observe.ledger import Ledger
from dtf_lightning.elastic.observe.pause_clock import PauseClock
from dtf_lightning.elastic.observe.time_account import Bucket
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.resume import LoopPhase
from dtf_lightning.errors import DtfError, GenerationBroken, RunAborted

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from torch.utils.data import DataLoader

    from dtf_lightning.elastic.lightning.strategy import ElasticDDPStrategy

log = logging.getLogger("dtf_lightning")

VERDICT_FACTOR = 10
"""A suspected failure waits this many `rescale_timeout`s for the leader's word: etcd may be away meanwhile."""


class StopForRescale(Exception):
    """The agreed step boundary of a planned rescale is reached."""


class WorkerLeft(SystemExit):
    """This worker's part in the run is over and the run goes on, or ended, without it: exit code 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason


class ElasticSession:
    """See the module's docstring. One per process; owned by the strategy."""

    restored = False
    """The run's state comes from an earlier life of its workers: it began in another world."""

    def __init__(self, settings: SessionSettings, link: WorkerLink, group: GenerationGroup) -> None:
        self.settings = settings
        self.group = group
        self.link = link
        welcome = self.link.welcome
        self.welcome = welcome
        self.cluster_environment = ElasticEnvironment(
            rank=welcome.rank,
            world_size=welcome.world_size,
            local_rank=environment.local_rank(),
            num_local_workers=welcome.num_local_workers,
        )
        # Until the first generation, Lightning sees the node's workers as its process group and a provisional rank, so
        # that a joiner writes no log folder and `prepare_data` has its barrier on the node.
        environment.set_rank(welcome.rank)
        set_rank_zero(welcome.rank)
        accept_any_world()
        self.trainer: Any = None
        """The trainer that fits; `None` before."""
        self.progress = TrainingProgress()
        self.undo = Undo()
        self.generation = Generation(number=0)
        self.in_group = False
        """A generation's process group is up; false while set-up uses the node's local group, and in a rescale."""
        self.resuming = False
        """The next pass through the epoch loop goes on at a position, instead of beginning an epoch."""
        self.over = False
        """Training came to its end with all members: whoever dies now is missed no more."""
        self.recorder = RunRecorder(
            welcome, environment.local_rank(), lambda event: self.link.send(Happened(event=event.to_json()))
        )
        self.scalars = ElasticScalars(self.recorder.account)
        self.run_log = RunLog()
        self.pace = Pace()
        self.clock = PauseClock(account=self.recorder.account)
        self.batches = self.progress.data = RunningBatches()
        self.virtual: VirtualRanks | None = None
        """With `virtual_ranks`: who adds their gradients up."""
        self.ledger: Ledger | None = None
        self._fingerprint: tuple[dict[str, str], tuple[str, ...]] | None = None
        self._original_forward: Any = None
        self.redrawn = False
        """The last rescale rolled a step back, whose samples are drawn again."""
        self.untold: list[Generation] = []
        """Generations since the last batch that was committed: usually one or none."""
        self.loaded_position: dict[str, Any] | None = None
        """Where the checkpoint stood that Lightning has loaded; `None` without one of an elastic run."""
        self.configured_for: Beginning | None = None
        """What `configure_optimizers` has seen; `None` before it was called."""
        self.run_began: Beginning | None = None
        """What it has to see, on every worker; `None` before the run has begun."""
        self.beginning = True
        """No member has trained before this generation: all run their `on_train_start` hooks together."""

    @classmethod
    def check_in(cls, agent_socket: str, settings: SessionSettings) -> ElasticSession:
        """The session of a worker whose agent listens there. Raises what `WorkerLink` raises."""
        group = GenerationGroup()
        session = cls(settings, WorkerLink(agent_socket, environment.local_rank(), on_fail=group.cut), group)
        welcome = session.welcome
        group.form_local(
            host=welcome.store_host,
            port=welcome.store_port,
            prefix=f"{welcome.node}/{welcome.incarnation}",
            rank=environment.local_rank(),
            world_size=welcome.num_local_workers,
        )
        return session

    # --- 1 set-up ----------------------------------------------------------------------------------------------------

    def attach(self, trainer: pl.Trainer) -> None:
        """Bind to the trainer that will fit; before its set-up hooks."""
        self.trainer = trainer
        self.batches.accumulate = trainer.accumulate_grad_batches
        if self.settings.batches.virtual_ranks is not None:
            self.virtual = VirtualRanks(self.settings.batches.virtual_ranks)
            self.virtual.attach(trainer)
        self._original_forward = trainer.lightning_module.__dict__.get("forward")
        folder = self.run_dir(trainer)
        name = f"{self.welcome.node}.{environment.local_rank()}.{self.welcome.incarnation}"
        self.recorder.open(folder, trainer)
        self.run_log.attach(trainer)
        if self.settings.ledger:
            self.ledger = Ledger(folder / "ledger" / f"{name}.jsonl")

    def run_dir(self, trainer: pl.Trainer) -> Path:
        """Where this run's events and ledgers lie."""
        given = self.settings.run_dir or environment.read(environment.RUN_DIR)
        return Path(given or Path(trainer.default_root_dir) / "dtf" / self.welcome.run_id).absolute()

    @property
    def validated(self) -> bool:
        """In the hooks at the end of a validation: all its batches are done, as Lightning's logger connector knows."""
        return self.trainer.validating and self.trainer._logger_connector._first_loop_iter is None

    @property
    def strategy(self) -> ElasticDDPStrategy:
        strategy: Any = self.trainer.strategy
        return strategy  # type: ignore[no-any-return]

    # --- 2 entering a generation -------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Wait for the next generation, form it, and hold the same state as all its members.

        Raises:
            WorkerLeft: the run ended before this worker was needed.
            RunAborted, RunRefused: the leader's or the agent's last word.
        """
        if self._fingerprint is None:
            refuse_optimizers(self.trainer)
            hold_at_the_end(self.trainer)
            self.configured_for = seen_by(self.trainer)
            warm_up()  # on the node's local group
            self._fingerprint = session_fingerprint(self), parameter_signature(self.trainer.lightning_module)
        self.group.destroy()
        if self.loaded_position is not None and not self.progress.trained:
            go_to_loaded_position(self, self.loaded_position)
        self.recorder.account.charge(self.recorder.account.current)
        try:
            assignment = self.link.ready(*self._fingerprint, run_dir=str(self.run_dir(self.trainer)))
        except RunFinished as finished:
            self.recorder.ended(str(finished), self.trainer.global_step)
            raise WorkerLeft(str(finished)) from None
        if self.virtual is not None:
            self.virtual.refuse_superfluous(assignment.rank, assignment.world_size, self.welcome.node)
        self.clock.mark("wait")
        former = (self.strategy.global_rank, self.generation.number)
        self._form(assignment)
        self.clock.mark("group")
        share_state(self)
        reporter.take_rank_zero(self, former)
        self.clock.mark("state")
        self._begin(sync_weights=self.beginning)

    def _begin(self, *, sync_weights: bool) -> None:
        """All members hold one state and this worker is about to train with them."""
        self.strategy.wrap_model(sync=sync_weights)
        self.in_group = True
        self.clock.mark("wrap")
        step = self.trainer.global_step
        if self.ledger is not None:
            self.ledger.begin(
                generation=self.generation.number,
                rank=self.strategy.global_rank,
                world_size=self.generation.world_size,
                step=step,
                epoch=self.trainer.current_epoch,
            )
        self.recorder.entered(self.generation, self.strategy.global_rank, step, self.trainer.current_epoch)
        progress_bars.show_world(self.trainer, self.generation)
        self.run_log.holding = True
        self.untold.append(self.generation)
        self.link.active(step)

    def _form(self, assignment: Assign) -> None:
        self.generation = Generation.from_json(assignment.generation)
        self.cluster_environment.enter(rank=assignment.rank, world_size=assignment.world_size)
        environment.set_rank(assignment.rank)
        set_rank_zero(assignment.rank)
        self.group.form(
            host=self.generation.store_host,
            port=self.generation.store_port,
            prefix=self._store_prefix(),
            rank=assignment.rank,
            world_size=assignment.world_size,
            backend=self.strategy.group_backend(),
            connect_timeout=self.welcome.rescale_timeout,
            timeout=self.strategy.group_timeout() or timedelta(minutes=30),
            device=self.strategy.root_device,
            still_wanted=self.link.check,
        )

    def _store_prefix(self) -> str:
        """Unique for the generation on the store that it meets on."""
        return f"{self.generation.instance}/gen{self.generation.number}"

    def signals(self) -> AbstractContextManager[None]:
        """Inside, signals that ask this process to end make it leave at a step boundary."""
        return graceful_signals(self.link.leaving)

    # --- 3 training --------------------------------------------------------------------------------------------------

    def bind_loader(self, loader: DataLoader[Any] | StreamLoader, *, first: bool = True) -> None:
        """Give a training loader its place in the world and in the epoch."""
        in_epoch = self.resuming and self.progress.phase is not LoopPhase.EPOCH_START
        self.batches.bind_loader(self, loader, first=first, in_epoch=in_epoch, recorded=self.ledger is not None)

    def before_batch(self) -> None:
        """Called before each batch. Raises `StopForRescale` at the agreed boundary, `GenerationBroken`, `RunAborted`."""
        epoch_loop = self.trainer.fit_loop.epoch_loop
        progress = self.progress
        done = epoch_loop.batch_progress.current.completed
        at_step = (done - self.batches.done_before) % self.trainer.accumulate_grad_batches == 0
        self.batches.begin(self, done)
        progress.phase = LoopPhase.BATCH
        if at_step:
            self.run_log.commit()
            progress.at_step_boundary(self.trainer)
            self.recorder.account.step_begins()
            self.undo.step_begins(self.trainer)
            self.link.step = self.trainer.global_step
            if self.link.at_boundary():
                raise StopForRescale
        else:
            self.link.check()

    def batch_drawn(self) -> None:
        """Called when the batch is there and its step is about to run: the ledger's line goes before the step."""
        self.recorder.account.data_there()
        self.pace.forward_begins()
        if self.virtual is not None:
            self.virtual.before_training_step()
        self.batches.drawn(self)
        if self.ledger is None:
            return
        for samples, padding in self.batches.draws():
            self.ledger.draw(
                generation=self.generation.number,
                rank=self.strategy.global_rank,
                epoch=self.trainer.current_epoch,
                step=self.trainer.global_step,
                samples=samples,
                padding=padding,
                num_streams=self.batches.num_streams,
            )

    def before_validation_batch(self) -> None:
        """Called before each batch of a validation or sanity check; may raise like `before_batch`."""

    def before_optimizer_step(self) -> None:
        """Last look before weights change: on CUDA a failed collective raises late, or not at all."""
        if self.strategy.root_device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.link.check()

    def after_batch(self) -> None:
        """Called when the batch is committed: its optimizer stepped, or it is part of an accumulation."""
        self.progress.batch_done()
        reporter.batch_committed(self, self.clock.stop())
        if self.progress.no_step_open(self.trainer):
            self.run_log.commit()
            self.pace.step(self)

    # --- 4 failures --------------------------------------------------------------------------------------------------

    def should_rescale(self, error: BaseException) -> bool:
        """Whether this exception is a rescale; if not, it is this process's own end, and the others are told.

        Raises `RunAborted` in the place of whatever the abort's end of the collectives has raised.
        """
        self.recorder.sample(self.trainer, failing=True)
        self.clock.start()
        if isinstance(error, Exception) and self.link.abort_reason is not None:
            raise RunAborted(self.link.abort_reason) from None
        if isinstance(error, (StopForRescale, GenerationBroken)):
            return True
        if isinstance(error, Exception) and not isinstance(error, DtfError):
            if self.link.broken:
                return True
            if is_communication_error(error) and self.link.suspect(
                f"{type(error).__name__}: {error}".splitlines()[0][:300],
                timeout=VERDICT_FACTOR * self.welcome.rescale_timeout,
            ):
                return True
        if not isinstance(error, (WorkerLeft, RunAborted)):
            self.link.dying(f"{type(error).__name__}: {error}"[:2000])
            self.recorder.ended(f"{type(error).__name__}: {error}"[:2000], self.trainer.global_step)
            self.group.cut()
            self.run_log.commit()
        self.run_log.holding = False
        return False

    # --- 5 unwinding -------------------------------------------------------------------------------------------------

    def unwind(self, error: BaseException) -> None:
        """Bring this process to a clean, resumable position without a process group."""
        planned = isinstance(error, StopForRescale)
        unwinding.strip_tracebacks(error)
        progress_bars.pause(self.trainer)
        self.in_group = False
        unwinding.restore_module(self.trainer, self._original_forward)  # first: a patched forward holds DDP alive
        unwinding.unwrap_ddp(self.trainer)
        unwinding.drop_loaders(self.trainer, keep_workers=self.strategy.keeps_loader)
        if not planned:
            self.group.cut()
        self.group.destroy()
        if self.progress.trained:
            in_step = self.progress.phase is LoopPhase.BATCH
            self.redrawn = self.progress.settle(self.trainer)
            if in_step and self.progress.phase is LoopPhase.ADVANCE_END:  # forward over a step: it is committed
                self.run_log.commit()
            if self.redrawn:
                self.undo.roll_step_back(self.trainer)
                self.recorder.account.step_undone()
            self.undo.roll_hooks_back(self.trainer)
            self.loaded_position = None  # of no meaning any more, whoever has loaded a callback state
            self.undo.keep_random_state()
        self.run_log.drop()
        if planned:
            self.run_log.flush()
        self.clock.mark("unwind")

    def leave_if_asked(self) -> None:
        """Leave if the planned rescale was this node's leaving. Raises `WorkerLeft`."""
        stop = self.link.stopping
        if stop is not None and stop.leave and not self.link.broken:
            self.recorder.ended(stop.reason, self.trainer.global_step)
            progress_bars.close(self.trainer)
            self.link.left()
            raise WorkerLeft(stop.reason)

    # --- 6 the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Come to the end of training together with all members.

        Raises `GenerationBroken` when a member died before it had finished: the others need this one's state.
        """
        self.recorder.sample(self.trainer)
        self.run_log.commit()
        self.recorder.account.enter(Bucket.WAITING)
        self.link.finished(self.trainer.global_step)
        self.over = True
        self.run_log.holding = False
        self.recorder.ended("finished", self.trainer.global_step)
        if self.ledger is not None:
            self.ledger.end(
                generation=self.generation.number, rank=self.strategy.global_rank, step=self.trainer.global_step
            )

    def close(self) -> None:
        """Hang up and let go of files and of the process group. Idempotent; the agent takes it for this worker's end."""
        self.group.close()
        self.link.close()
        self.recorder.close()
        if self.ledger is not None:
            self.ledger.close()


_current: ElasticSession | None = None


def current_session(settings: SessionSettings | None = None) -> ElasticSession | None:
    """This process's session, made on the first call; `None` where torchrun has not started it."""
    global _current
    if _current is None:
        socket_path, world = environment.agent_socket(), environment.torchelastic_world()
        if socket_path is not None:
            _current = ElasticSession.check_in(socket_path, settings or SessionSettings())
        elif world is not None:
            # Imported here: it is a kind of this file's session.
            from dtf_lightning.elastic.lightning.session.restart_session import RestartSession

            _current = RestartSession(world, settings or SessionSettings())
        else:
            return None
    elif settings is not None:
        _current.settings = settings
    return _current
