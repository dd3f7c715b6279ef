"""`RunLog` keeps one log for a run whichever process is rank 0: no second `version_N`, no step twice or out of order.

Rules that this file guards:

* a logged value is written when its step is committed: until then it is held, and dropped if the step runs again;
* every rank keeps what it has logged in the last seconds. A worker that becomes rank 0 reads the end of the log that its
  predecessor left, voids the steps that will run again, and adds what the predecessor had not written yet;
* at most `FLUSH_SECONDS` of a TensorBoard or CSV log are in memory only, and nothing of any log when another rank may continue it.

Loggers of other classes than those in `HELD` get every value at once, as in plain Lightning.

Private API touched here: the loggers' `_version`, `_id`, `_run_id`, `_wandb_init`, `_prefix`, `_kwargs`; the epoch
loop's `_batches_that_stepped`.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dtf_lightning.elastic.lightning.host.logs import adopt_version, close_experiment, log_prefix
from dtf_lightning.elastic.lightning.host.loops import logged_step
from dtf_lightning.elastic.lightning.host.names import (
    CSVLogger,
    MLFlowLogger,
    ModelCheckpoint,
    TensorBoardLogger,
    WandbLogger,
)
from dtf_lightning.elastic.lightning.reporting import tensorboard_log
from dtf_lightning.elastic.lightning.reporting.csv_log import CsvFile
from dtf_lightning.elastic.rules.resume import LoopPhase

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")

HELD = (TensorBoardLogger, CSVLogger, WandbLogger, MLFlowLogger)
FLUSH_SECONDS = 2.0
KEPT_SECONDS = 3 * FLUSH_SECONDS
"""Seconds for which a rank keeps entries; longer than a predecessor can have had them in memory only."""
KEPT_AT_LEAST = 64
"""Number of entries that are kept however old they are: steps may take minutes."""
MAX_KEPT = 20_000
LOGGERS_FILE = "loggers.json"
"""Name of the file in the run's folder that says which logs are this run's, for processes that start later."""


@dataclass(frozen=True)
class Entry:
    """Hold the arguments of one call of a logger."""

    logger: int
    """Position of the logger in `trainer.loggers`."""
    metrics: Mapping[str, Any]
    step: int
    text: bool = False
    """Whether the values are Markdown texts, not numbers."""

    def keys(self, logger: Any) -> list[tuple[str, int]]:
        """Return (name in the log, step) of each value."""
        prefix = log_prefix(logger)
        suffix = tensorboard_log.TEXT_SUFFIX if self.text else ""
        return [(f"{'' if self.text else prefix}{name}{suffix}", self.step) for name in self.metrics]


class RunLog:
    """Hold what Lightning logs until its step is committed; one object per worker, on every rank."""

    def __init__(self) -> None:
        self.holding = False
        """Whether values are held; true between the first step and the end of training."""
        self.resumed = False
        """Whether the log was begun by an earlier start of this run and is still to be taken over."""
        self._loggers: list[Any] = []
        self._write: list[Callable[..., Any]] = []
        """The loggers' own methods `log_metrics`."""
        self._csv: dict[int, CsvFile] = {}
        """The CSV loggers' files, by the loggers' positions."""
        self._pending: list[Entry] = []
        self._settled = 0
        """Number of pending entries that `drop` keeps."""
        self._recent: deque[tuple[float, Entry]] = deque(maxlen=MAX_KEPT)
        self._there: dict[int, set[tuple[str, int]]] = {}
        """Names and steps that each logger's log already has, around the last take-over."""
        self._flush_due = 0.0
        self._laid_out = False

    def attach(self, trainer: pl.Trainer) -> None:
        """Hold what the trainer's loggers are given from now on."""
        self._loggers = list(trainer.loggers)
        self._write = [logger.log_metrics for logger in self._loggers]
        self._csv = {
            index: CsvFile(logger) for index, logger in enumerate(self._loggers) if isinstance(logger, CSVLogger)
        }
        for index, logger in enumerate(self._loggers):
            if isinstance(logger, HELD):
                logger.log_metrics = partial(self._log, index)  # type: ignore[method-assign]

    def _log(self, index: int, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if not self.holding or step is None:
            self._write[index](metrics, step)
        else:
            values = {
                name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                for name, value in metrics.items()
            }
            self._pending.append(Entry(index, values, step))

    # --- scalars of the run itself ---------------------------------------------------------------------------------------

    def tensorboards(self) -> list[int]:
        """Return the positions of the loggers that show elastic scalars and texts."""
        return [index for index, logger in enumerate(self._loggers) if isinstance(logger, TensorBoardLogger)]

    def add(self, trainer: pl.Trainer, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None) -> None:
        """Log elastic scalars and texts of the current step to TensorBoard."""
        step = logged_step(trainer)
        for index in self.tensorboards():
            if scalars:
                self._pending.append(Entry(index, dict(scalars), step))
            if texts:
                self._pending.append(Entry(index, dict(texts), step, text=True))

    # --- held, kept, dropped -----------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Write all that was logged so far, because its steps and hooks will not run again."""
        if not self._pending:
            return
        now = time.monotonic()
        for entry in self._pending:
            self._put(entry)
            self._recent.append((now, entry))
        self.drop(settled=True)
        while len(self._recent) > KEPT_AT_LEAST and self._recent[0][0] < now - KEPT_SECONDS:
            self._recent.popleft()
        if now >= self._flush_due:
            self.flush()

    def settle(self) -> None:
        """Take note that what was logged so far will most likely not be logged again: `drop` keeps it."""
        self._settled = len(self._pending)

    def drop(self, *, settled: bool = False) -> None:
        """Drop what was logged since the last commit, because it will be logged again; what has `settled`, if told so."""
        if settled:
            self._settled = 0
        del self._pending[self._settled :]

    def flush(self) -> None:
        """Write TensorBoard and CSV logs to the disk; does nothing on other ranks than 0.

        Called when another process may continue them, too: a CSV logger keeps rows in memory until it is closed.
        """
        self._flush_due = time.monotonic() + FLUSH_SECONDS
        for index in self.tensorboards():
            tensorboard_log.flush(self._loggers[index])
        for file in self._csv.values():
            file.save()

    def _put(self, entry: Entry) -> None:
        there = self._there.get(entry.logger)
        if there:
            keys = entry.keys(self._loggers[entry.logger])
            metrics = {
                name: value for (name, value), key in zip(entry.metrics.items(), keys, strict=True) if key not in there
            }
            if not metrics:
                return
            entry = Entry(entry.logger, metrics, entry.step, entry.text)
        if entry.text:
            for tag, text in entry.metrics.items():
                tensorboard_log.add_text(self._loggers[entry.logger], tag, text, entry.step)
            return
        if not self._laid_out and isinstance(self._loggers[entry.logger], TensorBoardLogger):
            self._laid_out = True
            for index in self.tensorboards():
                tensorboard_log.add_layout(self._loggers[index])
        self._write[entry.logger](entry.metrics, entry.step)

    # --- changing rank 0 ----------------------------------------------------------------------------------------------

    def recent(self) -> list[Entry]:
        """Return what was logged last, for a worker that receives this worker's state."""
        return [entry for _, entry in self._recent]

    def adopt_recent(self, entries: Iterable[Entry]) -> None:
        """Keep the recent entries of the worker that sent its state."""
        now = time.monotonic()
        self._recent = deque(((now, entry) for entry in entries), maxlen=MAX_KEPT)

    def take_over(self, trainer: pl.Trainer, phase: LoopPhase) -> None:
        """Continue the log of the former rank 0. `phase`: the position in the loops where training resumes."""
        self.resumed = False
        # The last step is committed, and a validation of its weights is valid, whichever rank 0 logged it.
        again = logged_step(trainer) + (phase is LoopPhase.ADVANCE_END)
        for index, logger in enumerate(self._loggers):
            if isinstance(logger, TensorBoardLogger):
                there = tensorboard_log.go_on(logger, again, sum(len(e.metrics) for _, e in self._recent))
                self._laid_out = again > 0 or any(tag.endswith(tensorboard_log.LAYOUT_TAG) for tag, _ in there)
            elif index in self._csv:
                there = self._csv[index].go_on(again)
            else:
                continue  # these loggers write at once, and cannot take anything back
            self._there[index] = there
            for _, entry in self._recent:
                if entry.logger == index:
                    self._put(entry)
            # From here on only hooks that run again could log something twice.
            self._there[index] = {(name, step) for name, step in there if step >= again - 2}
        self.flush()

    # --- which logs are this run's ---------------------------------------------------------------------------------------------

    def remember(self, folder: Path, start: Mapping[str, Any]) -> None:
        """Write to a file which logs are this run's; if the folder cannot be written, a later start begins new logs."""
        if not self._loggers:
            return
        known = {key: start[key] for key in ("logger_versions", "checkpoint_folders")}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOGGERS_FILE).write_text(json.dumps(known, default=str))
        except OSError as error:
            log.debug("which logs are this run's is not written down: %s", error)

    def resume(self, trainer: pl.Trainer, folder: Path) -> None:
        """Continue the logs of an earlier start of this run, if `remember` has written which ones they are."""
        try:
            known = json.loads((folder / LOGGERS_FILE).read_text())
            versions, folders = known["logger_versions"], known["checkpoint_folders"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        for index, (logger, version) in enumerate(zip(self._loggers, versions, strict=False)):
            if not isinstance(logger, HELD) or version is None:
                continue
            if version == logger.version:  # the user has set the version
                self.resumed = True
            elif isinstance(logger, (TensorBoardLogger, CSVLogger)):
                fresh, former = Path(logger.log_dir), logger.version
                _forget_fresh(logger)
                adopt_version(logger, version)
                self.resumed = True
                if not Path(logger.log_dir).is_dir():  # the log is in another folder, or was removed
                    adopt_version(logger, former)
                    continue
                if index in self._csv:
                    self._csv[index].open_kept()
                for callback in trainer.checkpoint_callbacks:
                    if isinstance(callback, ModelCheckpoint) and _is_inside(callback.dirpath, fresh):
                        callback.dirpath = folders.get(callback.state_key, callback.dirpath)
            else:
                adopt_version(logger, version)


def _forget_fresh(logger: TensorBoardLogger | CSVLogger) -> None:
    """Remove the log that set-up has begun for this start, if it has no values yet."""
    experiment = close_experiment(logger)
    if experiment is None:
        return
    folder = Path(logger.log_dir)
    if isinstance(logger, TensorBoardLogger):
        experiment.close()
    files = list(folder.glob("*"))
    if all(path.name == "hparams.yaml" or path.name.startswith(tensorboard_log.FILE_PREFIX) for path in files):
        for path in files:
            path.unlink(missing_ok=True)
        folder.rmdir()


def _is_inside(path: Any, folder: Path) -> bool:
    return path is not None and Path(path).absolute().is_relative_to(folder.absolute())
