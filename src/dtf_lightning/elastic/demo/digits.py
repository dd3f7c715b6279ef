"""This is the demo's training script: a longer `examples/digits.py`, which the demo can tell to end.

A fixed number of epochs would end before the last node leaves on one machine, and take minutes on another.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

from dtf_lightning.elastic.demo import LOG_EVERY_N_STEPS, NUM_TRAINING_SAMPLES, NUM_VALIDATION_SAMPLES
from dtf_lightning.elastic.lightning.callback import ElasticCallback


class DigitsClassifier(L.LightningModule):
    """Classify 8x8 grey-scale images with a small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        accuracy = (self.network(images).argmax(dim=1) == labels).float().mean()
        self.log("val/accuracy", accuracy, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class StopWhenTold(Callback):
    """End training after the epoch in which the file has appeared; all workers do what rank 0 sees."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.strategy.broadcast(self.path.exists())


def digits() -> list[Any]:
    """Return training and validation set: (1, 8, 8) images in [0, 1] and their labels."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset: Dataset[Any] = TensorDataset(images, torch.tensor(data.target))
    sizes = [NUM_TRAINING_SAMPLES, NUM_VALIDATION_SAMPLES]
    return list(random_split(dataset, sizes, generator=torch.Generator().manual_seed(0)))


def main() -> None:
    """Train as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--name", required=True, help="the TensorBoard log's")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--stop-file", type=Path, help="end with the epoch in which it appears")
    parser.add_argument("--batch-size", type=int, required=True, help="per worker")
    arguments = parser.parse_args()

    L.seed_everything(0)
    train, validation = digits()
    stop = [StopWhenTold(arguments.stop_file)] if arguments.stop_file else []
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=arguments.epochs,
        callbacks=[ElasticCallback(ledger=True), *stop],
        logger=TensorBoardLogger(arguments.folder / "tensorboard", name=arguments.name),
        default_root_dir=arguments.folder,
        log_every_n_steps=LOG_EVERY_N_STEPS,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        DigitsClassifier(),
        DataLoader(train, batch_size=arguments.batch_size, shuffle=True),
        DataLoader(validation, batch_size=90),
    )


if __name__ == "__main__":
    main()
