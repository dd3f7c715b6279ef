"""Hand rank zero's duties over when rank zero is gone: loggers, progress bar, whatever asks `rank_zero_only`.

Private API touched here: `CSVLogger`'s experiment writer, the progress bar's `on_train_start`/`on_train_epoch_start`.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.rank_zero import rank_zero_only as utilities_rank_zero_only

if TYPE_CHECKING:
    import lightning.pytorch as pl


def set_rank_zero(rank: int) -> None:
    """Tell Lightning's `rank_zero_only` functions who they run on."""
    for decorator in (rank_zero_only, utilities_rank_zero_only):
        setattr(decorator, "rank", rank)  # noqa: B010  mypy knows no attribute of a function


def take_over_rank_zero(trainer: pl.Trainer) -> None:
    """What a worker does that was another rank and has become rank 0, before its first step as such."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            _continue_csv(logger)
    bar = trainer.progress_bar_callback
    if isinstance(bar, ProgressBar):
        bar.enable()
        bar.on_train_start(trainer, trainer.lightning_module)
        bar.on_train_epoch_start(trainer, trainer.lightning_module)


def _continue_csv(logger: CSVLogger) -> None:
    """Go on in the former rank zero's metrics.csv, which a new experiment writer would delete."""
    path = Path(logger.log_dir, "metrics.csv")
    if not path.is_file():
        return
    with path.open(newline="") as file:
        header = next(csv.reader(file), [])
    aside = path.rename(path.with_suffix(".kept"))
    try:
        experiment = logger.experiment
    finally:
        aside.rename(path)
    experiment.metrics_keys = header
