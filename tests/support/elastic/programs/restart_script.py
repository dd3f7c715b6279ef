"""A training script as a user writes it, slowed down until the file `fast` is there; after `fit` it waits while `hold` is,
with the file `tests` in `trainer.test`.

restart_script.py FOLDER EVERY
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import SumMetric

from dtf_lightning import ElasticCallback

NUM_SAMPLES, BATCH, EPOCHS = 120, 2, 3


def say(line: str) -> None:
    """One write: the ranks' lines must not mix."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Net(pl.LightningModule):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
        self.tested = SumMetric()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        if not (self.folder / "fast").exists():
            time.sleep(0.05)
        return self.layers(batch[0]).pow(2).mean()

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.tested.update(float(len(batch[0])))
        if index == 1:
            say(f"tests {os.getpid()}")
            while (self.folder / "hold").exists():
                time.sleep(0.02)

    def on_test_epoch_end(self) -> None:
        count = int(self.tested.compute())
        say(f"tested {count} samples in a world of {self.trainer.world_size}")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.01)


def main() -> None:
    folder = Path(sys.argv[1])
    logging.basicConfig(level=logging.INFO, format="[%(name)s] %(message)s")
    memory = folder / os.environ.get("MEMORY", "memory")
    memory.mkdir(exist_ok=True)
    callback = ElasticCallback(
        ledger=True, run_dir=str(folder), snapshot_every_n_steps=int(sys.argv[2]), snapshot_dir=str(memory)
    )
    trainer = pl.Trainer(
        max_epochs=EPOCHS, callbacks=[callback], accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=3, strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    pl.seed_everything(1, verbose=False)
    model = Net(folder)
    data = torch.randn(NUM_SAMPLES, 4, generator=torch.Generator().manual_seed(0))
    say(f"worker {os.getpid()} rank {trainer.global_rank} of {os.environ['WORLD_SIZE']}")
    trainer.fit(model, DataLoader(TensorDataset(data), batch_size=BATCH, shuffle=True))
    weights = sum(parameter.sum().item() for parameter in model.parameters())
    say(f"done rank {trainer.global_rank} of {trainer.world_size} step {trainer.global_step} {weights:.9f}")
    if (folder / "tests").exists():
        trainer.test(model, DataLoader(TensorDataset(data), batch_size=BATCH), verbose=False)
    while (folder / "hold").exists():
        time.sleep(0.02)


if __name__ == "__main__":
    main()
