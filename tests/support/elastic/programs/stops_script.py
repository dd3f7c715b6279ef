"""A training script of restart mode in which rank 0 alone wants to stop.

stops_script.py FOLDER STOP HOW, where HOW is `HOOK:STEP` for `trainer.should_stop = True` in that hook, or `metric` for
EarlyStopping on a metric that differs between the ranks; STOP is ElasticCallback's.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import ElasticCallback

NUM_SAMPLES, BATCH = 80, 2


class StopsAlone(Callback):
    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._stop)

    def _stop(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and trainer.global_rank == 0:
            trainer.should_stop = True


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layer(batch[0]).pow(2).mean()

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.log("loss", self.layer(batch[0]).pow(2).mean(), sync_dist=True)
        rising = float(self.trainer.global_step)
        self.log("own", rising if self.trainer.global_rank == 0 else -rising)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def main() -> None:
    signal.alarm(300)  # where the test fails, workers wait for ever in gloo, and under c10d nobody ends them
    folder, stop, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    stopper: Callback = EarlyStopping("own", patience=2)
    if how != "metric":
        hook, _, step = how.partition(":")
        stopper = StopsAlone(hook, int(step))
    elastic = ElasticCallback(ledger=True, run_dir=str(folder), snapshot_dir=str(folder), stop=stop)  # type: ignore[arg-type]
    trainer = pl.Trainer(
        max_epochs=4, callbacks=[elastic, stopper], accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=2, strategy="ddp", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, val_check_interval=10,
        accumulate_grad_batches=int(os.environ.get("ACCUMULATE", "1")),
    )  # fmt: skip
    pl.seed_everything(1, verbose=False)
    data = DataLoader(TensorDataset(torch.randn(NUM_SAMPLES, 4)), batch_size=BATCH, shuffle=True)
    trainer.fit(Net(), data, DataLoader(TensorDataset(torch.randn(8, 4)), batch_size=BATCH))
    sys.stdout.write(f"done rank {trainer.global_rank} of {trainer.world_size} step {trainer.global_step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
