"""Train a classifier on scikit-learn's handwritten digits, elastically.

    dtf etcd --port 2379 &
    torchrun --nnodes=1:4 --rdzv-backend=etcd --rdzv-endpoint=127.0.0.1:2379 --rdzv-id=digits examples/digits.py

Start the second line again in other terminals: each joins the run. End one with Ctrl-C, another with kill -9: the
others go on. Run without torchrun, the same script trains alone.
"""

import argparse

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from dtf_lightning import ElasticCallback


class DigitsClassifier(L.LightningModule):
    """A small convolutional network for 8x8 grey-scale images."""

    def __init__(self, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
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

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        accuracy = (self.network(images).argmax(dim=1) == labels).float().mean()
        self.log("val/accuracy", accuracy, prog_bar=True, sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)


def digits(seed: int = 0):
    """(1797, 1, 8, 8) images in [0, 1] and their labels, split into 1437 for training and 360 for validation."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    dataset = TensorDataset(images, torch.tensor(data.target))
    return random_split(dataset, [1437, 360], generator=torch.Generator().manual_seed(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=16, help="per worker")
    parser.add_argument("--folder", default="runs", help="where TensorBoard logs and checkpoints go")
    arguments = parser.parse_args()

    L.seed_everything(0)
    train, validation = digits()
    trainer = L.Trainer(
        max_epochs=arguments.epochs,
        callbacks=[ElasticCallback(ledger=True)],
        logger=TensorBoardLogger(arguments.folder, name="digits"),
        default_root_dir=arguments.folder,
        log_every_n_steps=5,
    )
    trainer.fit(
        DigitsClassifier(),
        DataLoader(train, batch_size=arguments.batch_size, shuffle=True),
        DataLoader(validation, batch_size=90),
    )
    if trainer.is_global_zero:
        print(f"validation accuracy: {trainer.callback_metrics['val/accuracy']:.3f}")


if __name__ == "__main__":
    main()
