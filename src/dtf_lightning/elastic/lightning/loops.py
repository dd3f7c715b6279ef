"""These subclasses of Lightning's training loops can be left and entered again when the world changes.

The only overrides of Lightning's private API are here:

* `_FitLoop`: `run`, `setup_data`, `on_run_start`, `on_advance_start`, `on_advance_end`, `on_save_checkpoint`;
* `_TrainingEpochLoop`: `on_run_start`, `advance`, `on_advance_end`, `_broadcast_sigterm_tensor`,
  `_accumulated_batches_reached`;
* `_AutomaticOptimization`: `_make_zero_grad_fn`;
* `_EvaluationLoop`: `run`;
* `_PredictionLoop`: `run`.

A rescale unwinds to `ElasticFitLoop.run` and no further: set-up hooks and the sanity check do not run again, loggers,
optimizers and metrics stay. Written against Lightning 2.6; `tests/architecture/test_lightning_api.py` fails when one of
these methods changes. Internal: `ElasticCallback` puts these loops into a trainer.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.checks.compatibility import refuse_nested_loop
from dtf_lightning.elastic.lightning.data.loaders import num_batches_of_share
from dtf_lightning.elastic.lightning.host.names import (
    AutomaticOptimization,
    EvaluationLoop,
    FitLoop,
    PredictionLoop,
    SIGTERMException,
    TrainingEpochLoop,
    call,
)
from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.rewind import unwinding
from dtf_lightning.elastic.lightning.rewind.undo import unchanged_random_state
from dtf_lightning.elastic.rules.resume import LoopPhase

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from dtf_lightning.elastic.lightning.run.interface import ElasticRun


def make_loops_elastic(trainer: pl.Trainer) -> None:
    """Turn the trainer's own loop objects into elastic ones; the loops keep their state."""
    trainer.fit_loop.__class__ = ElasticFitLoop
    trainer.fit_loop.epoch_loop.__class__ = ElasticEpochLoop
    trainer.fit_loop.epoch_loop.automatic_optimization.__class__ = ElasticOptimization
    trainer.validate_loop.__class__ = trainer.test_loop.__class__ = ElasticEvaluationLoop
    trainer.predict_loop.__class__ = ElasticPredictionLoop


def _run_of(loop: Any) -> ElasticRun:
    return loop.trainer.strategy.run  # type: ignore[no-any-return]


def _strategy_of(loop: Any) -> Any:
    """Return the elastic strategy, untyped: this file does not import it."""
    return loop.trainer.strategy


def _loading(loop: Any) -> AbstractContextManager[None]:
    world = _run_of(loop).world
    return _strategy_of(loop).loading(again=world.formed and not world.first)  # type: ignore[no-any-return]


class ElasticFitLoop(FitLoop):
    """Train through any number of generations."""

    _newcomer = True
    in_setup = False
    num_loaders = 0
    """Number of training loaders seen in the current call of `setup_data`."""
    _stale = False
    """Whether the current loader was made for the rest of an epoch, so that the next epoch needs one of its own."""

    def run(self) -> None:
        refuse_nested_loop(self.trainer)
        run = _run_of(self)
        with run.signals():
            trained = self._run_generations(run)
        if trained:
            self.on_run_end()

    def _run_generations(self, run: ElasticRun) -> bool:
        """Train in one generation after the other; return false if there was nothing to train."""
        while True:
            caught: BaseException | None = None
            try:
                run.enter()
                trained = self._train(run)
                run.finish()
                return trained
            except BaseException as error:
                if not run.should_rescale(error):
                    raise
                caught = error
            # Outside of the `except`, so that nothing keeps the frames of the former generation alive.
            run.unwind(caught)
            del caught
            run.leave_if_asked()

    def _train(self, run: ElasticRun) -> bool:
        """Do what `_FitLoop.run` does, but finish a pending epoch even where `done` is already true."""
        resuming = run.progress.resuming
        if resuming:
            self._mark_resumed(run)
        self._setup_data_of_generation()
        run.begin()
        if resuming:
            progress_bars.go_on(self.trainer)
        if self.skip and (run.world.first or not resuming) and run.progress.phase is LoopPhase.EPOCH_START:
            return False
        self.reset()
        self.on_run_start()
        run.heed_stop()
        while not run.progress.ended and (run.progress.pending or not self.done):
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

    def _setup_data_of_generation(self) -> None:
        if self._combined_loader is None:
            self.setup_data()
        else:
            # Set-up (`Trainer.estimated_stepping_batches`) has made the loader for a provisional world and position.
            unwinding.drop_loaders(self.trainer, keep_workers=_strategy_of(self).keeps_loader)
            with unchanged_random_state():
                self.setup_data()
        _run_of(self).progress.loader_of_generation_made(self.trainer)

    def _mark_resumed(self, run: ElasticRun) -> None:
        """Make Lightning's own restart logic skip the hooks that have already run in this epoch."""
        in_epoch = run.progress.phase is not LoopPhase.EPOCH_START
        self._restarting = self.epoch_loop._restarting = self._resuming_from_checkpoint = in_epoch
        self._stale = True

    def setup_data(self) -> None:
        self.in_setup, self.num_loaders = True, 0
        limit = self.trainer.limit_train_batches
        try:
            with _loading(self):
                super().setup_data()
            if self._combined_loader is not None:
                _run_of(self).batches.places.mode = self._combined_loader._mode
        finally:
            self.in_setup = False
            self.trainer.limit_train_batches = limit

    def limit_epoch(self, loader: Any) -> None:
        """Limit the current `setup_data` to what is left of the epoch's share of the data, as a number of batches."""
        share = self.trainer.limit_train_batches
        if share < 1.0:
            self.trainer.limit_train_batches = num_batches_of_share(loader, share)

    def on_run_start(self) -> None:
        run, trainer = _run_of(self), self.trainer
        if self._newcomer:
            unwinding.drop_validation_loaders(self.epoch_loop.val_loop)
        if run.world.first:
            self._newcomer = False
            super().on_run_start()
            return
        if not self._iteration_based_training():
            epochs: Any = self.epoch_progress.current
            epochs.completed = epochs.processed
        if self.epoch_loop._should_check_val_epoch() and trainer.val_dataloaders is None:
            trainer.validating = True
            with _loading(self):
                self.epoch_loop.val_loop.setup_data()  # has collectives: survivors and newcomers alike
            trainer.training = True
        if self._newcomer:
            self._newcomer = False
            # `GradientAccumulationScheduler` refuses what it has set itself in the run.
            accumulate, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, run.batches.accumulate
            with trainer.strategy.alone():  # type: ignore[attr-defined]
                call._call_callback_hooks(trainer, "on_train_start")
                call._call_lightning_module_hook(trainer, "on_train_start")
                call._call_strategy_hook(trainer, "on_train_start")
            trainer.accumulate_grad_batches = accumulate

    def on_advance_start(self) -> None:
        run = _run_of(self)
        if self._stale and not run.progress.resuming:
            self._stale = False
            _strategy_of(self).forget_loader(self)
            if not self._should_reload_train_dl:
                with unchanged_random_state():
                    self.setup_data()
                run.progress.loader_of_generation_made(self.trainer)
        run.progress.phase = run.progress.phase if run.progress.resuming else LoopPhase.EPOCH_START
        run.batches.seed_loader(run.world.rank)
        if run.progress.phase is LoopPhase.EPOCH_START:
            run.restore_random_state()  # before an epoch makes loaders of its own, and before its hooks: both may draw
            run.epoch_begins()
        super().on_advance_start()

    def on_advance_end(self) -> None:
        run = _run_of(self)
        with run.epoch_hooks():
            self._end_epoch(run)

    def _end_epoch(self, run: ElasticRun) -> None:
        """Do what `_FitLoop.on_advance_end` does, without the first hooks if they are done from before a rescale."""
        trainer = self.trainer
        connector: Any = trainer._logger_connector
        connector.epoch_end_reached()
        self.epoch_progress.increment_processed()
        if not run.progress.first_hooks_done:
            call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=False)
            call._call_lightning_module_hook(trainer, "on_train_epoch_end")
            run.first_hooks_done()
        call._call_callback_hooks(trainer, "on_train_epoch_end", monitoring_callbacks=True)
        connector.on_epoch_end()
        if not self.restarting and self.epoch_loop._num_ready_batches_reached():
            self.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=True)
        self.epoch_loop._batches_that_stepped -= 1
        connector.update_train_epoch_metrics()
        self.epoch_loop._batches_that_stepped += 1
        self.epoch_progress.increment_completed()
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_save_checkpoint(self) -> dict[str, Any]:
        """Leave the loaders' states out: they are empty, and plain Lightning would refuse to load them."""
        state = super().on_save_checkpoint()
        state.pop("combined_loader", None)
        return state


class ElasticEpochLoop(TrainingEpochLoop):
    """Check at each optimizer-step boundary whether a rescale is due, and count committed batches."""

    def on_run_start(self, data_fetcher: Any) -> None:
        run = _run_of(self)
        run.restore_random_state()
        super().on_run_start(data_fetcher)
        if run.progress.resuming:
            run.progress.resuming = False
            # From here on Lightning must not see a restart: it would skip hooks and advance counters by guessing.
            fit_loop: Any = self.trainer.fit_loop
            self._restarting = self.val_loop._restarting = fit_loop._restarting = False
            if run.progress.phase is LoopPhase.ADVANCE_END:
                self.on_advance_end(data_fetcher)

    def advance(self, data_fetcher: Any) -> None:
        run = _run_of(self)
        run.before_batch()
        super().advance(data_fetcher)
        run.after_batch()

    def on_advance_end(self, data_fetcher: Any) -> None:
        run = _run_of(self)
        run.heed_stop()  # Lightning validates where training stops
        with run.batch_hooks(validates=self._should_check_val_fx(data_fetcher)):
            super().on_advance_end(data_fetcher)

    def _broadcast_sigterm_tensor(self) -> None:
        # Lightning 2.6 does a blocking broadcast here before every batch, and swallows the exception that a dead peer
        # causes. An agreed boundary needs no collective: see `WorkerLink.at_boundary`.
        return

    def _accumulated_batches_reached(self) -> bool:
        ready = self.batch_progress.current.ready - _run_of(self).batches.done_before
        return ready % self.trainer.accumulate_grad_batches == 0


class ElasticOptimization(AutomaticOptimization):
    """Count a step's micro-batches from the batch at which the generation began, which decides their number."""

    def _make_zero_grad_fn(self, batch_idx: int, optimizer: Any) -> Any:
        accumulate = self.trainer.accumulate_grad_batches
        if (batch_idx - _run_of(self).batches.done_before) % accumulate:
            return None
        # Lightning compares with a count of its own, which starts with the epoch.
        return super()._make_zero_grad_fn(batch_idx if batch_idx % accumulate == 0 else 0, optimizer)


class ElasticEvaluationLoop(EvaluationLoop):
    """Test, or validate outside of `fit`, over all samples: see `AfterTraining`."""

    def run(self) -> list[Any]:
        result: list[Any] = _strategy_of(self).after_training.evaluate(self, super().run)
        return result


class ElasticPredictionLoop(PredictionLoop):
    """Predict all samples: see `AfterTraining`."""

    def run(self) -> Any:
        return _strategy_of(self).after_training.evaluate(self, super().run)
