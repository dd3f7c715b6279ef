"""`WorkerRun` takes one worker through a run, from set-up to the last generation, in live and in restart mode.

The life of a worker, in the order of this file's methods:

1. connect when `ElasticCallback` (or `ElasticDDPStrategy`) is constructed, and set up alone;
2. `enter` a generation: form its process group, agree on the newest state, receive it if another member has it;
3. train; at each optimizer-step boundary check whether a planned rescale stops here (in live mode one attribute read);
4. when an exception comes up through the loops, `should_rescale` tells a rescale from the user's own error;
5. `unwind` to a clean position that can be resumed, without a process group; then 2 again, or leave;
6. `finish` with the other members.

Where live and restart mode differ, a policy decides: `policies.Membership`, `policies.StateSource`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning import environment
from dtf_lightning.elastic.lightning.checks.agreement import Agreement
from dtf_lightning.elastic.lightning.checks.fingerprint import parameter_signature, run_fingerprint
from dtf_lightning.elastic.lightning.cluster_environment import ElasticEnvironment, accept_any_world
from dtf_lightning.elastic.lightning.data.gradients import DdpGradients, Gradients
from dtf_lightning.elastic.lightning.data.running_batches import RunningBatches
from dtf_lightning.elastic.lightning.data.virtual_ranks import VirtualRanks
from dtf_lightning.elastic.lightning.reporting.rank_zero import publish_rank
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.reporting.reporter import Reporter
from dtf_lightning.elastic.lightning.rewind.progress import TrainingProgress, warn_of_unknown_samples
from dtf_lightning.elastic.lightning.rewind.rewind import Rewind
from dtf_lightning.elastic.lightning.run.exits import StopForRescale, WorkerLeft
from dtf_lightning.elastic.lightning.run.policies import Membership, StateParts, StateSource, Verdict
from dtf_lightning.elastic.lightning.run.settings import RunSettings
from dtf_lightning.elastic.lightning.run.start_world import StartWorld
from dtf_lightning.elastic.lightning.run.stopping import why_cut_short, why_stopped, why_stopped_early
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.rules.resume import LoopPhase
from dtf_lightning.errors import RunAborted

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from dtf_lightning.elastic.lightning.data.stream_loader import StreamLoader

PEERS_PATIENCE = 10
"""Number of `rescale_timeout`s that a worker waits for peers to train the same parameters: loading a batch may be slow."""


class WorkerRun:
    """Implement `interface.ElasticRun`, as the module's docstring explains. One per process; the strategy holds it."""

    def __init__(self, settings: RunSettings, membership: Membership, source: StateSource) -> None:
        self.settings = settings
        self.membership = membership
        self.source = source
        welcome = membership.welcome
        self.environment = ElasticEnvironment(
            rank=welcome.rank,
            world_size=welcome.world_size,
            local_rank=environment.local_rank(),
            num_local_workers=welcome.num_local_workers,
        )
        self.world = World(rank=welcome.rank, size=welcome.world_size)
        # In live mode, until the first generation, Lightning sees the node's workers as its process group and a
        # provisional rank, so that a joiner writes no log folder and `prepare_data` has its barrier on the node.
        publish_rank(welcome.rank)
        accept_any_world()
        self.trainer: Any = None
        """The trainer that fits; `None` before `attach`."""
        self.progress = TrainingProgress()
        self.rewind = Rewind()
        self.over = False
        """Whether all members have come to the end of training: a member's death is no failure any more."""
        self.reporter = Reporter(RunRecorder(welcome, environment.local_rank(), membership.send))
        self.gradients: Gradients = DdpGradients()
        self.batches: RunningBatches
        """The training data of this worker; set by `attach`."""
        self.start_world: StartWorld
        """The world in which the run began; set by `attach`."""
        self.agreement: Agreement
        """Comparison of this worker's training state with its peers'; set by `attach`."""
        self._signature: tuple[dict[str, str], tuple[str, ...]] | None = None
        """Settings and parameters, as nodes compare them; `None` until set-up is over."""

    # --- 1 set-up ----------------------------------------------------------------------------------------------------

    @property
    def joiner(self) -> bool:
        """Whether the run trained before this worker was started."""
        return self.membership.welcome.joiner

    @property
    def recorder(self) -> RunRecorder:
        """The recorder of this worker's events and of its account of time."""
        return self.reporter.recorder

    def attach(self, trainer: Any) -> None:
        """Bind to the trainer that will fit, before its set-up hooks. Raises `SettingsError` for unsuitable settings."""
        self.trainer = trainer
        batches = self.settings.batches
        if batches.virtual_ranks is not None:
            drop_last, undo = batches.tail == "drop", self.rewind.undo
            self.gradients = VirtualRanks(
                batches.virtual_ranks, seed=self.settings.seed, drop_last=drop_last, undo=undo
            )
        self.gradients.attach(trainer)
        node = self.membership.welcome.node
        self.batches = RunningBatches(trainer, self.progress, self.settings, self.gradients, node=node)
        self.progress.data = self.batches
        self.start_world = StartWorld(trainer, self.environment)
        self.agreement = Agreement(
            trainer,
            every_n_steps=self.settings.verify_every_n_steps,
            patience=PEERS_PATIENCE * self.membership.welcome.rescale_timeout,
        )
        self.rewind.attach(trainer)
        generation = self.membership.attach(self.settings, self._fingerprint(), self._run_dir())
        if generation is not None:
            self.world = replace(self.world, generation=generation)
        welcome = self.membership.welcome
        self.recorder.known_as(welcome)
        name = f"{welcome.node}.{environment.local_rank()}.{welcome.incarnation}"
        self.reporter.open(trainer, self._run_dir(), name if self.settings.ledger else None)
        self.source.attach(
            StateParts(
                settings=self.settings,
                run_dir=self._run_dir(),
                trainer=trainer,
                progress=self.progress,
                rewind=self.rewind,
                start_world=self.start_world,
                run_log=self.reporter.run_log,
            )
        )

    def _run_dir(self) -> Path:
        """Return the folder of this run's events and ledgers."""
        given = self.settings.run_dir or environment.read(environment.RUN_DIR)
        return Path(given or Path(self.trainer.default_root_dir) / "dtf" / self.membership.welcome.run_id).absolute()

    def _fingerprint(self) -> dict[str, str]:
        gradients = self.gradients.fingerprint(self.trainer.strategy.root_device)
        return run_fingerprint(self.trainer, self.settings, gradients=gradients, accumulate=self.batches.accumulate)

    def loaded(self, position: dict[str, Any] | None) -> None:
        """Take note of the position in a checkpoint, or in a peer's state, that Lightning has loaded."""
        self.progress.loaded = position
        if position is not None and self.world.generation.number == 0:
            self.reporter.resume_logs()

    def leaving(self, reason: str) -> None:
        """Ask this worker to leave at the next step boundary. Safe in a signal handler."""
        self.membership.leaving(reason)

    def signals(self) -> AbstractContextManager[None]:
        """Make the process leave at a step boundary when a signal inside this context asks it to end."""
        return self.membership.signals()

    # --- 2 entering a generation -------------------------------------------------------------------------------------

    def enter(self) -> None:
        """Wait for the next generation, form it, and hold the same state as all its members.

        Raises:
            WorkerLeft: the run ended before this worker was needed, or this worker was already asked to leave.
            RunAborted, RunRefused, SettingsError: the leader, the agent or the peers do not take this worker.
        """
        trainer, clock, account = self.trainer, self.reporter.clock, self.recorder.account
        if self._signature is None:
            self.start_world.configured()
            self.membership.get_ready(trainer)
            self._signature = self._fingerprint(), parameter_signature(trainer.lightning_module)
        unknown = self.progress.batches_of_unknown_samples(trainer)
        if not self.progress.trained:
            self.progress.go_to_loaded(trainer)
        account.charge(account.current)
        try:
            world = self.membership.assignment(*self._signature, self._run_dir())
        except WorkerLeft as left:
            if left.run_goes_on and self.progress.trained:
                self.source.leave_behind(left.reason)
            self.reporter.ended(left.reason)
            raise
        self.gradients.refuse_superfluous(world.rank, world.size, self.membership.welcome.node)
        clock.mark("wait")
        former, self.world = self.world, world
        self._form(world)
        clock.mark("group")
        resumption = self.source.share(self.world)
        self.progress.resuming, self.progress.loaded, self.progress.trained = resumption.resuming, None, True
        self.world = replace(self.world, first=resumption.first)
        if self.membership.keeps_processes:
            self.reporter.take_rank_zero(self.world, former, self.progress.phase)
        clock.mark("state")
        trainer.strategy.wrap_model(sync=not resumption.restored)
        self.world = replace(self.world, formed=True)
        self.agreement.entered(self.world, resumption.sources)
        clock.mark("wrap")
        self.reporter.entered(self.world)
        self.rewind.undo.warn()
        if self.world.first and unknown:
            warn_of_unknown_samples(trainer, unknown)
        self.membership.active(trainer.global_step)

    def _form(self, world: World) -> None:
        self.environment.enter(rank=world.rank, world_size=world.size)
        publish_rank(world.rank)
        generation, strategy = world.generation, self.trainer.strategy
        self.membership.group.form(
            host=generation.store_host,
            port=generation.store_port,
            prefix=self.membership.store_prefix(generation),
            rank=world.rank,
            world_size=world.size,
            backend=strategy.group_backend(),
            connect_timeout=self.membership.welcome.rescale_timeout,
            timeout=strategy.group_timeout() or timedelta(minutes=30),
            device=strategy.root_device,
            still_wanted=self.membership.check,
        )

    def begin(self) -> None:
        """Take note that the generation's training loader is made: a new run begins in this world."""
        if self.world.first and self.start_world.run_began is None:
            self.start_world.begin()

    def bind_loader(self, loader: DataLoader[Any] | StreamLoader, *, first: bool = True) -> None:
        """Set a training loader's rank, world size and position in the epoch."""
        # Set-up may load the data of another world than the one that is formed: see `StartWorld`.
        world = replace(self.world, rank=self.environment.global_rank(), size=self.environment.world_size())
        recorded = self.reporter.records_samples
        self.batches.bind_loader(world, loader, first=first, in_epoch=self.progress.pending, recorded=recorded)

    # --- 3 training --------------------------------------------------------------------------------------------------

    def restore_random_state(self) -> None:
        """Undo what going back into the loops did to the random number generator."""
        self.rewind.undo.restore_random_state()

    def before_batch(self) -> None:
        """Prepare for the next batch. Raises `StopForRescale` at the agreed boundary, `GenerationBroken`, `RunAborted`."""
        trainer, progress = self.trainer, self.progress
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        at_step = (done - self.batches.done_before) % trainer.accumulate_grad_batches == 0
        self.batches.begin(done, self.world.rank)
        progress.phase = LoopPhase.BATCH
        self.rewind.undo.hooks_done()  # those of the epoch's start
        if at_step:
            self.reporter.run_log.commit()
            progress.at_step_boundary(trainer)
            self.recorder.account.step_begins()
            self.rewind.undo.step_begins(trainer)
            if self.membership.at_boundary(trainer.global_step):
                self.source.pack()
                raise StopForRescale
            self.source.at_boundary(trainer.global_step)
        else:
            self.membership.begin_batch()
        self.recorder.account.data_wanted()

    def batch_drawn(self) -> None:
        """Take note that the batch is loaded; the ledger's line is written before the training step runs."""
        self.recorder.account.data_there()
        self.reporter.pace.forward_begins()
        self.agreement.before_training_step(begins_step=self.progress.boundary_here(self.trainer))
        self.gradients.before_training_step()
        self.batches.drawn()
        self.reporter.drawn(self.world, self.batches)

    def before_validation_batch(self) -> None:
        """Prepare for the next batch of a validation or sanity check; may raise like `before_batch`, or `WorkerLeft`."""
        if self.over:
            return
        try:
            self.membership.before_validation_batch(self.world, sanity_checking=self.trainer.sanity_checking)
        except WorkerLeft as left:  # a sanity check runs outside of the training loops, which would report it
            self.reporter.ended(left.reason)
            raise

    def loss_there(self) -> None:
        """Take note that the forward pass is done."""
        self.reporter.pace.forward_done()

    def optimizer_closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return a closure that runs forward and backward, then a last check before the optimizer changes weights."""

        def checked() -> Any:
            result = closure()
            self.gradients.reduce()
            self.agreement.before_weights_change()
            self.source.before_weights_change()
            # On CUDA a failed collective raises late, or not at all.
            if self.trainer.strategy.root_device.type == "cuda":
                torch.cuda.current_stream().synchronize()
            self.membership.check()
            return result

        return checked

    def after_batch(self) -> None:
        """Take note that a batch is done: its optimizer stepped, or it is part of an accumulation."""
        self.source.before_weights_change()  # in an accumulation too: hooks after a batch may change weights
        self.progress.batch_done()
        self.reporter.committed(self.world, self.progress.batch_samples)
        if self.progress.no_step_open(self.trainer):
            self.reporter.run_log.commit()
            strategy = self.trainer.strategy
            on_cpu = strategy.root_device.type == "cpu"
            self.reporter.pace.step(self.world, self.trainer.global_step, strategy.model, on_cpu=on_cpu)

    @contextmanager
    def batch_hooks(self, *, validates: bool) -> Iterator[None]:
        """Wrap what Lightning does at a batch's end, so that it can be done again after a rescale."""
        self.progress.phase = LoopPhase.ADVANCE_END
        if validates:
            self.rewind.undo.validation_begins(self.trainer)
        yield
        if validates:
            self.heed_stop()
        self.rewind.undo.hooks_done()
        if self.progress.no_step_open(self.trainer):
            self.reporter.run_log.commit()
        self.progress.phase = LoopPhase.BATCH

    @contextmanager
    def epoch_hooks(self) -> Iterator[None]:
        """Wrap what Lightning does at an epoch's end, so that it can be done again after a rescale."""
        self.progress.epoch_batches_done(self.trainer)
        self.reporter.epoch_ends(self.world, self.batches, why_cut_short(self.trainer))
        self.rewind.undo.hooks_begin(self.trainer)
        yield
        self.heed_stop()
        self.rewind.undo.hooks_done()
        self.reporter.run_log.commit()
        self.progress.epoch_done()

    def epoch_begins(self) -> None:
        """Take note that the hooks of an epoch's start are about to run."""
        self.rewind.undo.hooks_begin(self.trainer)

    def first_hooks_done(self) -> None:
        """Take note that the hooks of an epoch's end are done up to the module's own; the others follow."""
        self.progress.first_hooks_done = True
        self.rewind.undo.first_hooks_done(self.trainer)
        self.reporter.run_log.settle()

    def heed_stop(self) -> None:
        """Stop with the first worker that stops, or tell the agent that this one does. May be a collective."""
        trainer = self.trainer
        if self.settings.stop == "any":
            trainer.should_stop = trainer.strategy.reduce_boolean_decision(trainer.should_stop, all=False)
        elif trainer.should_stop:
            early = why_stopped_early(trainer)
            if early is not None:  # told at once: the hooks of the end may wait for a worker that trains on
                self.membership.loop_ends(trainer.global_step, early)

    def collective(self) -> AbstractContextManager[None]:
        """Count the time inside the context as waiting for the other workers."""
        return self.reporter.pace.collective()

    # --- 4 failures --------------------------------------------------------------------------------------------------

    def should_rescale(self, error: BaseException) -> bool:
        """Tell whether this exception means a rescale; if not, a failure of this process is announced to the others.

        Raises `RunAborted` in place of what the aborted collectives have raised.
        """
        self.reporter.broken_off()
        try:
            verdict = self.membership.verdict(error)
        except RunAborted:
            self.reporter.run_log.holding = False
            raise
        if verdict is Verdict.RESCALE:
            return True
        if verdict is Verdict.OWN:
            self.reporter.failed(f"{type(error).__name__}: {error}"[:2000])
            self.membership.failed(error)
        self.reporter.run_log.holding = False
        return False

    # --- 5 unwinding -------------------------------------------------------------------------------------------------

    def unwind(self, error: BaseException) -> None:
        """Bring this process to a clean position that can be resumed, without a process group."""
        self.membership.break_off()
        self.source.before_weights_change()
        planned = isinstance(error, StopForRescale)
        trainer, progress, run_log = self.trainer, self.progress, self.reporter.run_log
        self.reporter.unwinding()
        self.world = replace(self.world, formed=False)
        self.rewind.leave_loops(error, keep_workers=trainer.strategy.keeps_loader)
        self.membership.drop_group(planned=planned)
        if progress.trained:
            in_step = progress.phase is LoopPhase.BATCH
            rolled_back = progress.settle(trainer)
            if in_step and progress.phase is LoopPhase.ADVANCE_END:  # settled forward over a step, which is committed
                run_log.commit()
            self.rewind.roll_back(step=rolled_back)
            self.reporter.rolled_back(step=rolled_back)
            progress.loaded = None  # the position in a loaded checkpoint means nothing once training began
        run_log.drop()
        if planned:
            run_log.flush()
        self.reporter.clock.mark("unwind")

    def leave_if_asked(self) -> None:
        """Leave the run if this worker unwound to leave. Raises `WorkerLeft`."""
        reason = self.membership.leave_reason()
        if reason is None:
            return
        if self.progress.trained:
            self.source.leave_behind(reason)
        self.reporter.left(reason)
        self.membership.leave(reason, self.trainer.global_step)

    # --- 6 the end ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Complete the training together with all members.

        Raises `GenerationBroken`, or torch's errors, if a member died before it had finished: the others need this
        worker's state.
        """
        self.reporter.finishing()
        self.membership.loop_ends(self.trainer.global_step, why_stopped(self.trainer))
        self.agreement.finish()
        self.membership.finished(self.trainer.global_step)
        self.over = True
        self.reporter.finished(self.world)
        self.source.finished()

    def go_on_alone(self, what: str, error: Exception) -> None:
        """Become a world of one after the end of training: a peer was lost in the evaluation `what`.

        Raises `PeerError` where this worker cannot stand for all that are left.
        """
        former = self.world
        self.membership.go_on_alone(former, what, error)
        self.environment.enter(rank=0, world_size=1)
        publish_rank(0)
        self.world = replace(former, rank=0, size=1)
        self.reporter.left_alone(former)

    def close(self) -> None:
        """Close connections, files and the process group. Idempotent; the agent takes it for this worker's end."""
        self.source.close()
        self.membership.close()
        self.reporter.close()
