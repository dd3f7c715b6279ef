"""`BestCheckpoints` keeps the best and the most recent checkpoints, and never loses them. Public.

Private API touched here: `trainer._checkpoint_connector.dump_checkpoint` (`Trainer.save_checkpoint` writes at once, and
leaves the other ranks at a barrier if rank 0 fails).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.checkpoints.formats import load_verified
from dtf_lightning.elastic.checkpoints.reader import best_first, first_intact
from dtf_lightning.elastic.checkpoints.record import Mode, Record
from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, LatestN, Policy
from dtf_lightning.elastic.checkpoints.saver import CheckpointSaver
from dtf_lightning.elastic.checkpoints.staging import optimizer_tensors, storages_of
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.elastic.checkpoints.summary import summary
from dtf_lightning.elastic.collectives.rank_zero_work import from_rank_zero
from dtf_lightning.elastic.lightning.callbacks.validation_metrics import ValidationMetrics
from dtf_lightning.elastic.lightning.host.names import Checkpoint, TrainerFn, rank_zero_info
from dtf_lightning.elastic.lightning.host.trainer import dump_checkpoint
from dtf_lightning.elastic.lightning.reporting.callback_events import CheckpointEvents
from dtf_lightning.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")


class BestCheckpoints(Checkpoint):
    """Save checkpoints; keep the `best` by metric and the `recent` ones, at most `best` per metric plus `recent`.

    Every file is written to a temporary name, synced, checksummed and renamed; older files are removed only then. Works
    with plain Lightning (one process or DDP) and in elastic runs. Rank 0 writes; its errors are raised on all ranks.

    Args:
        monitor: name of a logged metric, or of several: each has a list of its own best. `None`: keep recent ones only.
        mode: `"min"` or `"max"`; for several monitors one for all, or one for each.
        best: number of best checkpoints to keep, per monitor.
        recent: number of most recent checkpoints to keep.
        every_n_steps: optimizer steps between two saves; `None`: do not save by steps.
        every_n_epochs: epochs between two saves, at an epoch's end; `None`: do not save by epochs.
        on_validation: save after every validation.
        dirpath: folder or fsspec URL; `None` for `<default_root_dir>/checkpoints`.
        filename: file name without suffix, with the placeholders `{epoch}` and `{step}`.
        asynchronous: write in a background thread; training waits only for a copy in memory.
        max_in_flight: largest number of asynchronous saves at a time; each holds a copy of the state in host memory.
        safetensors: write each checkpoint's weights as `.safetensors`, too.
        policy: what to keep, in place of `best` and `recent`; a `dtf_lightning.RetentionPolicy`.
        run: name of the run in the manifest; `None` for a new name, or that of the checkpoint that is resumed.

    Raises:
        SettingsError: arguments are invalid or contradict each other.
        CheckpointError: while fitting: a checkpoint could not be saved; earlier ones are intact.
    """

    def __init__(
        self,
        monitor: str | Sequence[str] | None = None,
        mode: Mode | Sequence[Mode] = "min",
        best: int = 2,
        recent: int = 3,
        *,
        every_n_steps: int | None = None,
        every_n_epochs: int | None = None,
        on_validation: bool = True,
        dirpath: str | Path | None = None,
        filename: str = "epoch={epoch}-step={step}",
        asynchronous: bool = False,
        max_in_flight: int = 1,
        safetensors: bool = False,
        policy: Policy | None = None,
        run: str | None = None,
    ) -> None:
        self._best = _best_policies(monitor, mode, best)
        for name, value in (("every_n_steps", every_n_steps), ("every_n_epochs", every_n_epochs)):
            if value is not None and value < 1:
                raise SettingsError(f"BestCheckpoints({name}={value}): expected at least 1")
        if policy is None and recent + best * len(self._best) == 0:
            raise SettingsError("BestCheckpoints(best=0, recent=0) would keep nothing")
        self.every_n_steps, self.every_n_epochs, self.on_validation = every_n_steps, every_n_epochs, on_validation
        self.dirpath: str | Path | None = dirpath
        self.filename = filename
        self.recent = recent
        self.run = run
        self.records: tuple[Record, ...] = ()
        """Records of the kept checkpoints, as of the last save that all ranks know of; oldest first."""
        self.best_model_path = ""
        """Of the best (by the first monitor) that is kept, for `ckpt_path="best"`; Lightning's launchers set it too."""
        self._saver = CheckpointSaver(
            policy or AnyOf((*self._best, LatestN(recent))),
            max_in_flight=max_in_flight if asynchronous else None,
            safetensors=safetensors,
        )
        self._metrics = ValidationMetrics([policy.monitor for policy in self._best])
        self._suspended = False
        self._last: tuple[int, str] | None = None
        """Step and name of the last checkpoint."""
        self._events = CheckpointEvents()

    # --- called by users ----------------------------------------------------------------------------------------------

    @property
    def staged_bytes(self) -> int:
        """Host memory that asynchronous saving holds."""
        return self._saver.staged_bytes

    @property
    def location(self) -> str:
        """The folder or fsspec URL that checkpoints of this fit go to; empty before it."""
        return self._saver.location

    def ranked(self) -> list[Record]:
        """Return the kept checkpoints, best by the first monitor first; without a monitor, newest first."""
        if not self._best:
            return sorted(self.records, key=lambda record: (record.suspect, -record.serial))
        return best_first(self.records, self._best[0].monitor, self._best[0].mode)

    def load_before(self, step: int) -> tuple[Record, dict[str, Any]] | None:
        """Return the best intact checkpoint of at most `step` steps, loaded; on the writing rank only.

        Raises:
            CheckpointError: an asynchronous save has failed.
        """
        if self.run is None:
            return None  # nothing saved, nothing resumed
        folder = self._saver.folder(self.run)
        self.records = folder.records
        able = [record for record in self.ranked() if record.step <= step and not record.suspect]
        record = first_intact(folder.storage, able)
        return None if record is None else (record, load_verified(folder.storage, record))

    def suspend(self) -> None:
        """Stop saving in this fit: training has diverged, and the good checkpoints are saved."""
        self._suspended = True

    def suspect(self, since_step: int) -> None:
        """Mark checkpoints from step `since_step` on as saved in a divergence; on the writing rank only."""
        if self.run is None:
            return
        folder = self._saver.folder(self.run)
        folder.suspect(since_step)
        self.records = folder.records

    # --- Lightning's hooks -------------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._saver.location = str(self.dirpath or Path(trainer.default_root_dir) / "checkpoints")
        self._suspended = False
        if stage == "fit":
            self._saver.check_formats()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.world_size == 1:
            self._saver.check()
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0 and not self._is_saved(trainer):
            self._save(trainer, self._metrics.of(trainer, validated=False))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._saver.wait_until_copied()  # an average of the weights may be put in their place
        self._metrics.validation_begins(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        self._metrics.validation_ends(trainer)
        if self._skips(trainer):
            return
        self._metrics.validated_at = trainer.global_step
        if self._is_saved(trainer):
            self._annotate(trainer, self._metrics.of(trainer, validated=True))
        elif self.on_validation:
            self._save(trainer, self._metrics.of(trainer, validated=True))

    def on_before_optimizer_step(self, *_: Any) -> None:
        self._saver.wait_until_copied()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if not due or self._skips(trainer):
            return
        metrics = self._metrics.of(trainer, validated=self._metrics.validated_at == trainer.global_step)
        if self._is_saved(trainer):
            self._annotate(trainer, metrics)
        else:
            self._save(trainer, metrics)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        if self._last is not None:
            self._learn(trainer, lambda run: self._saver.folder(run).records)
            self._events.tell(trainer, self.records, self.location)
            rank_zero_info(summary(self.records, self.location, self._best))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        try:
            self._saver.flush()
        except CheckpointError as error:
            log.error("while ending on %s: %s", type(exception).__name__, error)

    def state_dict(self) -> dict[str, Any]:
        return {"run": self.run, "last": self._last, "measured": sorted(self._metrics.measured)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.run = state_dict["run"] or self.run
        self._last = tuple(state_dict["last"]) if state_dict["last"] else None
        self._metrics.measured = set(state_dict["measured"])

    # --- saving ------------------------------------------------------------------------------------------------------

    def _save(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        if self._skips(trainer) or trainer.global_step == 0:
            return
        with self._events.saving(trainer):
            self._save_now(trainer, metrics)
        self._events.tell(trainer, self.records, self.location)

    def _save_now(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        self._name_run(trainer)
        step, epoch = trainer.global_step, trainer.current_epoch
        name = f"{self.filename.format(epoch=epoch, step=step)}.ckpt"
        # Saved in the checkpoint itself, so that a run that resumes from it does not save the same step again.
        before, self._last = self._last, (step, name)
        # Called on all ranks: for some strategies gathering the state is a collective.
        checkpoint = dump_checkpoint(trainer)

        def steady() -> set[int]:
            return storages_of(optimizer_tensors(trainer.optimizers))

        def save(run: str) -> tuple[Record, ...]:
            return self._saver.save(run, name, checkpoint, steady, step=step, epoch=epoch, metrics=metrics)

        try:
            self._learn(trainer, save)
        except BaseException:
            self._last = before
            raise

    def _annotate(self, trainer: pl.Trainer, metrics: dict[str, float]) -> None:
        assert self._last is not None
        step, name = self._last
        self._name_run(trainer)
        self._learn(trainer, lambda run: self._saver.annotate(run, step, name, metrics))

    def _learn(self, trainer: pl.Trainer, work: Callable[[str], tuple[Record, ...]]) -> None:
        """Do the work on rank 0; all ranks then know the run's name and what is kept, without looking at the disk."""

        def on_rank_zero() -> tuple[tuple[Record, ...], str]:
            assert self.run is not None
            return work(self.run), self.run

        known = from_rank_zero(on_rank_zero, rank=trainer.global_rank, broadcast=trainer.strategy.broadcast)
        if known is not None:
            self.records, self.run = known
            ranked = self.ranked()
            self.best_model_path = open_storage(self.location).location(ranked[0].name) if ranked else ""

    def _name_run(self, trainer: pl.Trainer) -> None:
        """Set the run's name; in an elastic run on all ranks, because each can become the writer."""
        if self.run is None:
            run: Any = getattr(trainer.strategy, "run", None)
            if run is not None:
                self.run = re.sub(r"[^A-Za-z0-9_-]", "-", str(run.world.generation.instance))
            elif trainer.is_global_zero:
                self.run = uuid.uuid4().hex[:12]

    # --- small questions ---------------------------------------------------------------------------------------------

    def _is_saved(self, trainer: pl.Trainer) -> bool:
        return self._last is not None and self._last[0] == trainer.global_step

    def _skips(self, trainer: pl.Trainer) -> bool:
        dry: Any = getattr(trainer, "fast_dev_run", False)
        if self._suspended or dry or trainer.state.fn != TrainerFn.FITTING:
            return True
        return trainer.sanity_checking


def _best_policies(monitor: str | Sequence[str] | None, mode: Mode | Sequence[Mode], best: int) -> tuple[BestN, ...]:
    monitors = [monitor] if isinstance(monitor, str) else list(monitor or ())
    modes: list[Any] = [mode] * len(monitors) if isinstance(mode, str) else list(mode)
    if len(modes) != len(monitors):
        raise SettingsError(
            f"BestCheckpoints: {len(monitors)} monitors and {len(modes)} modes; give one mode, or one each"
        )
    return tuple(BestN(best, name, its_mode) for name, its_mode in zip(monitors, modes, strict=True))
