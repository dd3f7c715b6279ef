"""Hand rank zero's duties over when rank zero is gone: loggers, progress bar, whatever asks `rank_zero_only`.

Private API touched here: `CSVLogger`'s experiment writer, the progress bar's `on_train_start`/`on_train_epoch_start`.
"""

from __future__ import annotations

import csv
import os
from typing import TYPE_CHECKING

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.rank_zero import rank_zero_only as utilities_rank_zero_only

if TYPE_CHECKING:
    import lightning.pytorch as pl


def set_rank_zero(rank: int) -> None:
    """Tell Lightning's `rank_zero_only` functions who they run on."""
    rank_zero_only.rank = utilities_rank_zero_only.rank = rank


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
    path = os.path.join(logger.log_dir, "metrics.csv")
    if not os.path.isfile(path):
        return
    with open(path, newline="") as file:
        header = next(csv.reader(file), [])
    aside = path + ".kept"
    os.replace(path, aside)
    try:
        experiment = logger.experiment
    finally:
        os.replace(aside, path)
    experiment.metrics_keys = header
