"""`DivergenceStopping` ends or repairs a training that diverges, before its good checkpoints are gone. Public."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist

from dtf_lightning.elastic.checkpoints.record import Mode
from dtf_lightning.elastic.collectives.rank_zero_work import from_rank_zero
from dtf_lightning.elastic.events import Diverged, RolledBack
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.lightning.callbacks.recent_batches import RecentBatches
from dtf_lightning.elastic.lightning.callbacks.rollback import Rollback, watch_samples
from dtf_lightning.elastic.lightning.host.names import Callback, TrainerFn, rank_zero_warn
from dtf_lightning.elastic.lightning.reporting.callback_events import recorder_of
from dtf_lightning.elastic.numerics.divergence_detector import (
    Divergence,
    DivergenceDetector,
    DivergenceKind,
    DivergenceSettings,
)
from dtf_lightning.elastic.numerics.loss_slots import LossSlots
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

Action = Callable[[Divergence, "pl.Trainer", "pl.LightningModule"], object]


class DivergenceStopping(Callback):
    """Watch every step's loss, and a validation metric; act when training diverges.

    All ranks see the same numbers (the mean over the ranks) and decide the same at the same step. The losses are checked
    every `check_every` batches; between two checks nothing waits for the device.

    Args:
        monitor: `"loss"`, which `training_step` returns, or another key of the dictionary that it returns. `None`: do not
            watch training steps.
        evaluation: name of a metric that validation logs; `None`: do not watch validation.
        mode: whether lower (`"min"`) or higher (`"max"`) is better, for both.
        action: what to do. `"stop"`: end training; the good checkpoints stay. `"rollback"`: go back to the best intact
            checkpoint of `BestCheckpoints` from before the divergence, leave out the samples that led to it, cut the
            learning rate, and continue; after `max_rollbacks` stop. Or a callable `action(divergence, trainer, module)`,
            called on all ranks.
        settings: what counts as divergence of the loss.
        evaluation_settings: what counts as divergence of the metric; by default with a window of 20 validations, a
            warm-up of 2 and a patience of 2.
        check_every: batches between two checks of the losses.
        learning_rate_factor: factor by which a rollback multiplies the learning rates, above 0 and at most 1.
        max_rollbacks: largest number of rollbacks in the whole run.
        margin: optimizer steps by which a good checkpoint must be older than the last step before the first bad loss.

    Raises:
        SettingsError: arguments are invalid; on `fit`: a rollback without `BestCheckpoints`.
    """

    def __init__(
        self,
        monitor: str | None = "loss",
        evaluation: str | None = None,
        mode: Mode = "min",
        action: Literal["stop", "rollback"] | Action = "stop",
        *,
        settings: DivergenceSettings | None = None,
        evaluation_settings: DivergenceSettings | None = None,
        check_every: int = 10,
        learning_rate_factor: float = 0.5,
        max_rollbacks: int = 2,
        margin: int = 1,
    ) -> None:
        if monitor is None and evaluation is None:
            raise SettingsError("DivergenceStopping(monitor=None, evaluation=None) would watch nothing")
        if not callable(action) and action not in ("stop", "rollback"):
            raise SettingsError(f"DivergenceStopping(action={action!r}): choose 'stop', 'rollback' or give a callable")
        if check_every < 1 or max_rollbacks < 0 or margin < 0 or not 0 < learning_rate_factor <= 1:
            raise SettingsError(
                f"DivergenceStopping(check_every={check_every}, max_rollbacks={max_rollbacks}, margin={margin}, "
                f"learning_rate_factor={learning_rate_factor}): expected at least 1, 0 and 0, and a factor in (0, 1]"
            )
        self.monitor, self.evaluation, self.action = monitor, evaluation, action
        self.check_every = check_every
        self.rollback = Rollback(learning_rate_factor=learning_rate_factor, max_rollbacks=max_rollbacks)
        self.margin = margin
        self.divergences: list[Divergence] = []
        """Divergences that this process has seen, oldest first."""
        self.excluded: set[int] = set()
        """Numbers of the samples that are left out from now on."""
        self._detector = DivergenceDetector(settings or DivergenceSettings(mode=mode))
        self._evaluation_detector = DivergenceDetector(
            evaluation_settings or DivergenceSettings(mode=mode, window=20, warm_up=2, patience=2)
        )
        self._last_good_evaluation = 0
        self._slots: LossSlots | None = None
        self._world: tuple[int, int] | None = None
        """Generation (0 outside of elastic runs) and size of the world in which the detectors were last shared."""
        patience = self._detector.settings.patience + self._detector.settings.non_finite_patience
        self._batches = RecentBatches(memory=3 * check_every + patience + 2)

    @property
    def num_rollbacks(self) -> int:
        """Number of rollbacks in the whole run."""
        return self.rollback.num_done

    # --- Lightning's hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        if stage == "fit" and self.action == "rollback" and self._checkpoints(trainer) is None:
            raise SettingsError(
                "DivergenceStopping(action='rollback') has nothing to go back to: add a BestCheckpoints callback, "
                "e.g. BestCheckpoints(monitor='val_loss', every_n_steps=100)"
            )
        self._warn_of_short_memory(trainer)

    def _warn_of_short_memory(self, trainer: pl.Trainer) -> None:
        """Warn if all recent checkpoints may be bad ones by the time a divergence of the loss is found."""
        checkpoints = self._checkpoints(trainer)
        if checkpoints is None or self.monitor is None or not checkpoints.every_n_steps:
            return
        memory = checkpoints.every_n_steps * checkpoints.recent
        delay = 2 * self.check_every + self._detector.settings.patience + self.margin
        if memory <= delay:
            rank_zero_warn(
                f"BestCheckpoints(every_n_steps={checkpoints.every_n_steps}, recent={checkpoints.recent}) looks back "
                f"{memory} steps, and a divergence may be decided up to {delay} steps after it began: all recent "
                "checkpoints may be bad ones by then. Keep more of them, save less often, or lower check_every"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._world = None
        self._slots = LossSlots(self.check_every, trainer.strategy.root_device)
        if self.action == "rollback":
            watch_samples(trainer, self.excluded, self._batches.watch)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._batches.begins(trainer.global_step + 1)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        *_: Any,
    ) -> None:
        if self.monitor is None:
            return
        assert self._slots is not None
        if self._world is None or self._world != _world(trainer):
            self._share(trainer)
        total = trainer.fit_loop.epoch_loop.total_batch_idx
        slot = total % self.check_every
        loss = outputs if isinstance(outputs, torch.Tensor) else (outputs or {}).get(self.monitor)
        if loss is not None:
            self._slots.put(slot, loss, trainer.global_step)
        if slot == self.check_every - 1:
            self._look(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.evaluation is None or trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        value = trainer.callback_metrics.get(self.evaluation)
        if value is None:
            rank_zero_warn(
                f"DivergenceStopping(evaluation={self.evaluation!r}): validation logs nothing of that name, only "
                f"{', '.join(sorted(trainer.callback_metrics)) or 'nothing'}"
            )
            return
        if self._world is None or self._world != _world(trainer):
            self._share(trainer)
        mean = torch.as_tensor(value, dtype=torch.float64, device=trainer.strategy.root_device).detach().clone()
        reduced: Any = trainer.strategy.reduce(mean, reduce_op="mean") if trainer.world_size > 1 else mean
        divergence = self._evaluation_detector.observe(float(reduced), trainer.global_step)
        if divergence is not None:
            self._act(divergence, trainer, pl_module, good_until=self._last_good_evaluation)
        elif self._evaluation_detector.is_calm:
            self._last_good_evaluation = trainer.global_step

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        if vars(trainer.strategy).pop("process_dataloader", None) is not None:
            self._batches.watch(None)

    def state_dict(self) -> dict[str, Any]:
        return {
            "detector": self._detector.state_dict(),
            "evaluation_detector": self._evaluation_detector.state_dict(),
            "last_good_evaluation": self._last_good_evaluation,
            "num_rollbacks": self.rollback.num_done,
            "excluded": sorted(self.excluded),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._detector.load_state_dict(state_dict["detector"])
        self._evaluation_detector.load_state_dict(state_dict["evaluation_detector"])
        self._last_good_evaluation = state_dict["last_good_evaluation"]
        self.rollback.num_done = state_dict["num_rollbacks"]
        self.excluded.clear()  # the samplers share this very set
        self.excluded.update(state_dict["excluded"])

    # --- checking the losses -----------------------------------------------------------------------------------------------------

    def _share(self, trainer: pl.Trainer) -> None:
        """Give all ranks of a new world rank 0's detectors, and drop losses that are not yet checked.

        A rank that died in mid-collective may have left some of the others with one check more than the rest.
        """
        assert self._slots is not None
        self._slots.drop()
        if trainer.world_size > 1:
            state = trainer.strategy.broadcast(self.state_dict())
            if not trainer.is_global_zero:
                self.load_state_dict(state)
        self._world = _world(trainer)

    def _look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._slots is not None
        # Not `strategy.reduce`, which waits for a barrier, and then for the sum.
        seen = self._slots.collect(partial(dist.all_reduce, async_op=True) if trainer.world_size > 1 else None)
        for step, loss in seen:
            divergence = self._detector.observe(loss, step)
            if divergence is not None:
                self._act(divergence, trainer, pl_module, good_until=divergence.onset - 1 - self.margin)
                return  # the other losses were computed with weights that are gone, or training ends

    # --- acting ------------------------------------------------------------------------------------------------------

    def _act(
        self, divergence: Divergence, trainer: pl.Trainer, pl_module: pl.LightningModule, *, good_until: int
    ) -> None:
        self.divergences.append(divergence)
        where = f"step {divergence.onset} to {divergence.step}, seen at step {trainer.global_step}"
        rank_zero_warn(f"training diverges ({divergence.kind.value}, {where}): {divergence.reason}")
        recorder = recorder_of(trainer)
        if recorder is not None:
            recorder.happened(
                Diverged,
                divergence=divergence.kind.value,
                onset=divergence.onset,
                step=divergence.step,
                reason=divergence.reason,
                action=self.action if isinstance(self.action, str) else getattr(self.action, "__name__", "callable"),
            )
        if callable(self.action):
            self.action(divergence, trainer, pl_module)
            self._calm_down()
            return
        if self.action == "rollback":
            checkpoints = self._checkpoints(trainer)
            assert checkpoints is not None
            outcome = self.rollback.run(trainer, checkpoints, good_until)
            if outcome.done:
                self._exclude(divergence, trainer)
                self._calm_down()
            rank_zero_warn(outcome.reason)
            if recorder is not None:
                recorder.happened(RolledBack, step=trainer.global_step, done=outcome.done, reason=outcome.reason)
            if outcome.done:
                return
        self._stop(trainer, good_until)

    def _stop(self, trainer: pl.Trainer, good_until: int) -> None:
        trainer.should_stop = True
        checkpoints = self._checkpoints(trainer)
        if checkpoints is not None:
            checkpoints.suspend()
            from_rank_zero(
                lambda: checkpoints.suspect(good_until + 1),
                rank=trainer.global_rank,
                broadcast=trainer.strategy.broadcast,
            )

    def _calm_down(self) -> None:
        assert self._slots is not None
        self._slots.drop()
        self._detector.recover()
        self._evaluation_detector.recover()

    def _exclude(self, divergence: Divergence, trainer: pl.Trainer) -> None:
        """Leave out the divergence's samples; a drift has none.

        They start with the step before the first bad loss, which may be the one that did the damage.
        """
        mine: list[int] = []
        if divergence.kind is not DivergenceKind.DRIFT:
            mine = self._batches.samples(divergence.onset - 1, divergence.step)
        self.rollback.exclude(trainer, self.excluded, mine, self._batches.sampler)

    @staticmethod
    def _checkpoints(trainer: pl.Trainer) -> BestCheckpoints | None:
        callbacks: list[Any] = list(getattr(trainer, "callbacks", ()))
        return next((callback for callback in callbacks if isinstance(callback, BestCheckpoints)), None)


def _world(trainer: pl.Trainer) -> tuple[int, int]:
    run: Any = getattr(trainer.strategy, "run", None)
    return (run.world.generation.number if run is not None else 0, trainer.world_size)
