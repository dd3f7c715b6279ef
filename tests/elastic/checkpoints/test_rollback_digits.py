"""Digits with poisoned batches: with a rollback it ends where a clean run ends; without, it does not."""

from __future__ import annotations

import statistics
import warnings

import lightning as L
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import BestCheckpoints, DivergenceStopping
from dtf_lightning.elastic.numerics.divergence_detector import DivergenceSettings

BATCH = 32
EPOCHS = 6
POISONED = (12, 13, 30)
"""Batches of every epoch whose images are a thousand times too bright and whose labels are wrong."""


class Digits(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.correct = self.seen = 0

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4, gamma=0.3)}


def data(seed: int, *, poisoned: bool):
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(digits.images, dtype=torch.float32).view(-1, 64)[order] / 16
    labels = torch.tensor(digits.target)[order]
    train, test = (images[:1437].clone(), labels[:1437].clone()), (images[1437:], labels[1437:])
    if poisoned:
        for batch in POISONED:
            where = slice(batch * BATCH, (batch + 1) * BATCH)
            train[0][where] *= 1000
            train[1][where] = (train[1][where] + 1) % 10
    return train, test


def accuracy(folder, seed: int, *, poisoned: bool, rollback: bool) -> tuple[float, DivergenceStopping | None]:
    train, test = data(seed, poisoned=poisoned)
    torch.manual_seed(seed)
    module = Digits()
    stopping = None
    callbacks: list = []
    if rollback:
        stopping = DivergenceStopping(
            action="rollback",
            # A batch a thousand times off ruins the weights at once: one observation is enough.
            settings=DivergenceSettings(warm_up=8, patience=1, spike=20.0),
            check_every=1,
            learning_rate_factor=0.9,
            max_rollbacks=5,
        )
        callbacks = [stopping, BestCheckpoints(every_n_steps=5, recent=3, on_validation=False, dirpath=folder)]
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, callbacks=callbacks, logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=rollback, default_root_dir=str(folder),
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*train), batch_size=BATCH))
    with torch.no_grad():
        return (module.network(test[0]).argmax(1) == test[1]).float().mean().item(), stopping


@pytest.mark.process
def test_rollback_recovers(tmp_path, record_property):
    """The mean of three poisoned runs is within one standard deviation of five clean ones; unprotected ones are not."""
    warnings.filterwarnings("ignore")
    clean = [accuracy(tmp_path / "clean", seed, poisoned=False, rollback=False)[0] for seed in range(5)]
    ruined, _ = accuracy(tmp_path / "ruined", 0, poisoned=True, rollback=False)
    saved = []
    for seed in range(3):
        reached, stopping = accuracy(tmp_path / f"saved{seed}", seed, poisoned=True, rollback=True)
        assert stopping is not None
        assert 2 <= stopping.num_rollbacks <= 5
        poisoned = {batch * BATCH + index for batch in POISONED for index in range(BATCH)}
        assert poisoned <= stopping.excluded  # all found in the first epoch, never trained again
        assert len(stopping.divergences) == stopping.num_rollbacks
        saved.append(reached)
    mean, deviation = statistics.mean(clean), statistics.stdev(clean)
    record_property("clean", f"{mean:.4f} +- {deviation:.4f}")
    record_property("with rollback, without", f"{statistics.mean(saved):.4f}, {ruined:.4f}")
    assert abs(statistics.mean(saved) - mean) <= deviation
    assert ruined < mean - 3 * deviation
