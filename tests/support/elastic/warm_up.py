"""Importing this trains for two steps, so that what is forked afterwards finds modules imported and caches filled.

The first fit of a process imports some modules late and asks for the first time what is an instance of which abstract class:
a fifth of what a worker of the tests does.
"""

from __future__ import annotations

import tempfile
import warnings

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from support.elastic.training import Model, Samples, Training


def _train() -> None:
    state = torch.get_rng_state()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=2,
            logger=CSVLogger(folder),
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(Model(Training()), DataLoader(Samples(16), 8), DataLoader(Samples(8), 8))
    torch.set_rng_state(state)


_train()
