"""Lightning's two training loops, made to be left and entered again. The only overrides of Lightning's private API:

* `_FitLoop`: `run`, `setup_data`, `on_run_start`, `on_advance_start`, `on_advance_end`;
* `_TrainingEpochLoop`: `on_run_start`, `advance`, `on_advance_end`, `_broadcast_sigterm_tensor`,
  `_accumulated_batches_reached`;
* `_AutomaticOptimization`: `_make_zero_grad_fn`.

A rescale unwinds to `ElasticFitLoop.run` and no further: set-up hooks, the sanity check and loggers are not run again,
optimizers and metrics live on. Written against Lightning 2.6; `tests/architecture/test_lightning_api.py` fails when one
of these methods changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.trainer import call

from dtf_lightning.elastic.lightning.data.loaders import num_batches_of_share
from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.rewind import unwinding
from dtf_lightning.elastic.lightning.rewind.undo import unchanged_random_state
from dtf_lightning.elastic.lightning.session import start_world
from dtf_lightning.elastic.lightning.session.session import ElasticSession
from dtf_lightning.elastic.rules.resume import LoopPhase

if TYPE_CHECKING:
    import lightning.pytorch as pl


def make_loops_elastic(trainer: pl.Trainer) -> None:
    """Turn the trainer's own loop objects into elastic ones; their state stays."""
    trainer.fit_loop.__class__ = ElasticFitLoop
    trainer.fit_loop.epoch_loop.__class__ = ElasticEpochLoop
    trainer.fit_loop.epoch_loop.automatic_optimization.__class__ = ElasticOptimization


def _session(loop: Any) -> ElasticSession:
    return loop.trainer.strategy.session  # type: ignore[no-any-return]


class ElasticFitLoop(_FitLoop):
    """Trains through any number of generations."""

    _newcomer = True
    _in_setup = False
    _num_loaders = 0
    """Training loaders seen in the running `setup_data`."""
    _stale = False
    """The running loader was made for the rest of an epoch; the next epoch needs its own."""

    def run(self) -> None:
        session = _session(self)
        with session.signals():
            trained = self._run_generations(session)
        if trained:
            self.on_run_end()

    def _run_generations(self, session: ElasticSession) -> bool:
        """False if there was nothing to train."""
        while True:
            caught: BaseException | None = None
            try:
                session.enter()
                trained = self._train(session)
                session.finish()
                return trained
            except BaseException as error:
                if not session.should_rescale(error):
                    raise
                caught = error
            # Outside of the `except`, so that nothing keeps the frames of the former generation alive.
            session.unwind(caught)
            del caught
            session.leave_if_asked()

    def _train(self, session: ElasticSession) -> bool:
        """`_FitLoop.run`, except that a pending epoch is finished even where `done` already says so."""
        resuming = session.resuming
        if resuming:
            self._mark_resumed(session)
        self._setup_data_of_generation(session)
        if session.beginning and not session.restored:
            start_world.begin(session)
        if resuming:
            progress_bars.go_on(self.trainer)
        if self.skip and (session.beginning or not resuming) and session.progress.phase is LoopPhase.EPOCH_START:
            return False
        self.reset()
        self.on_run_start()
        while (session.resuming and session.progress.phase is not LoopPhase.EPOCH_START) or not self.done:
            try:
                self.on_advance_start()
                self.advance()
                self.on_advance_end()
            except StopIteration:
                break
            finally:
                self.on_iteration_done()
        self._restarting = False
        return True

    def _setup_data_of_generation(self, session: ElasticSession) -> None:
        if self._combined_loader is None:
            self.setup_data()
            return
        # Set-up (`Trainer.estimated_stepping_batches`) has made it, for a world and a position that were provisional.
        unwinding.drop_loaders(self.trainer, keep_workers=session.strategy.keeps_loader)
        with unchanged_random_state():
            self.setup_data()

    def _mark_resumed(self, session: ElasticSession) -> None:
        """Make Lightning's own restart logic skip the hooks that this epoch has had already."""
        in_epoch = session.progress.phase is not LoopPhase.EPOCH_START
        self._restarting = self.epoch_loop._restarting = self._resuming_from_checkpoint = in_epoch
        self._stale = True

    def setup_data(self) -> None:
        self._in_setup, self._num_loaders = True, 0
        limit = self.trainer.limit_train_batches
        try:
            super().setup_data()
            if self._combined_loader is not None:
                _session(self).batches.mode = self._combined_loader._mode
        finally:
            self._in_setup = False
            self.trainer.limit_train_batches = limit

    def limit_epoch(self, loader: Any) -> None:
        """For the running `setup_data`: what is left of the epoch's share of the data, as a number of batches."""
        share = self.trainer.limit_train_batches
        if share < 1.0:
            self.trainer.limit_train_batches = num_batches_of_share(loader, share)

    def on_run_start(self) -> None:
        session, trainer = _session(self), self.trainer
        if self._newcomer:
            unwinding.drop_validation_loaders(self.epoch_loop.val_loop)
        if session.beginning:
            self._newcomer = False
            super().on_run_start()
            return
        if not self._iteration_based_training():
            epochs: Any = self.epoch_progress.current
            epochs.completed = epochs.processed
        if self.epoch_loop._should_check_val_epoch() and trainer.val_dataloaders is None:
            trainer.validating = True
            self.epoch_loop.val_loop.setup_data()  # has collectives: survivors and newcomers alike
            trainer.training = True
        if self._newcomer:
            self._newcomer = False
            with trainer.strategy.alone():  # type: ignore[attr-defined]
                call._call_callback_hooks(trainer, "on_train_start")
                call._call_lightning_module_hook(trainer, "on_train_start")
                call._call_strategy_hook(trainer, "on_train_start")

    def on_advance_start(self) -> None:
        session = _session(self)
        if self._stale and not session.resuming:
            self._stale = False
            session.strategy.forget_loader(self)
            if not self._should_reload_train_dl:
                with unchanged_random_state():
                    self.setup_data()
        session.progress.phase = session.progress.phase if session.resuming else LoopPhase.EPOCH_START
        session.batches.seed_loader(session)
        super().on_advance_start()

    def on_advance_end(self) -> None:
        session = _session(self)
        session.progress.epoch_batches_done(self.trainer)
        session.undo.hooks_begin(self.trainer)
        super().on_advance_end()
        session.undo.hooks_done()
        session.run_log.commit()
        session.progress.epoch_done()


class ElasticEpochLoop(_TrainingEpochLoop):
    """Looks at each step boundary whether a rescale is due; counts what is committed."""

    def on_run_start(self, data_fetcher: Any) -> None:
        session = _session(self)
        session.undo.restore_random_state()
        super().on_run_start(data_fetcher)
        if session.resuming:
            session.resuming = False
            # From here on this is no restart for Lightning: it would skip and advance counters on its own guesses.
            fit_loop: Any = self.trainer.fit_loop
            self._restarting = self.val_loop._restarting = fit_loop._restarting = False
            if session.progress.phase is LoopPhase.ADVANCE_END:
                self.on_advance_end(data_fetcher)

    def advance(self, data_fetcher: Any) -> None:
        session = _session(self)
        session.before_batch()
        session.recorder.account.data_wanted()
        super().advance(data_fetcher)
        session.after_batch()

    def on_advance_end(self, data_fetcher: Any) -> None:
        session = _session(self)
        session.progress.phase = LoopPhase.ADVANCE_END
        if self._should_check_val_fx(data_fetcher):
            session.undo.validation_begins(self.trainer)
        super().on_advance_end(data_fetcher)
        session.undo.hooks_done()
        if session.progress.no_step_open(self.trainer):
            session.run_log.commit()
        session.progress.phase = LoopPhase.BATCH

    def _broadcast_sigterm_tensor(self) -> None:
        # Lightning 2.6 broadcasts here before every batch, blocking, and swallows the exception of a dead peer. An
        # agreed boundary needs no collective: see `WorkerLink.at_boundary`.
        return

    def _accumulated_batches_reached(self) -> bool:
        ready = self.batch_progress.current.ready - _session(self).batches.done_before
        return ready % self.trainer.accumulate_grad_batches == 0


class ElasticOptimization(_AutomaticOptimization):
    """Counts the micro-batches of a step from the batch at which the generation began, for that decides their number."""

    def _make_zero_grad_fn(self, batch_idx: int, optimizer: Any) -> Any:
        accumulate = self.trainer.accumulate_grad_batches
        if (batch_idx - _session(self).batches.done_before) % accumulate:
            return None
        # Lightning compares with a count of its own, which begins with the epoch.
        return super()._make_zero_grad_fn(batch_idx if batch_idx % accumulate == 0 else 0, optimizer)
