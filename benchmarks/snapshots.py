"""How long training stands still for a snapshot into the node's memory, beside synchronous saves of the same state.

    python benchmarks/snapshots.py [--quick]

A real fit of one worker: 16.8M parameters with Adam (200 MB of state), SGD-like steps of a large batch. Every few steps
one of three takes its turn, so that all see the same machine: Lightning's `trainer.save_checkpoint` to the disk, a
snapshot written while training waits for it, and a periodic snapshot. The stall of the last is what the training thread
spends in it: preparing the copy, and waiting for it before the optimizer step.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from measure import table
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import ElasticCallback

EVERY = 4
"""Steps between two turns."""


class Mlp(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(4)))

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layers(batch[0]).pow(2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-4)


class Turns(Callback):
    """Times the three kinds, and steps with and without a snapshot being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.times: dict[str, list[float]] = {name: [] for name in ("checkpoint", "at once", "stall", "step", "busy")}
        self._began = self._stalled = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.snapshotter = trainer.strategy.run.source._snapshotter
        for name in ("at_boundary", "wait_until_copied"):
            setattr(self.snapshotter, name, self._timed(getattr(self.snapshotter, name)))

    def _timed(self, method: Any) -> Any:
        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            method(*arguments)
            self._stalled += time.perf_counter() - start

        return timed

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step, stalled = trainer.global_step, self._stalled
        self._stalled = 0.0
        if step <= 3 * EVERY:
            return  # the buffers are made, files appear for the first time
        turn = (step - 1) % (3 * EVERY)  # the step after a periodic snapshot was taken is turn 0
        if turn == 0:
            self.times["stall"].append(stalled)
        self.times["busy" if turn < 2 else "step"].append(time.perf_counter() - self._began)
        if turn == 2 * EVERY - 1:
            start = time.perf_counter()
            trainer.save_checkpoint(self.folder / "sync.ckpt")
            self.times["checkpoint"].append(time.perf_counter() - start)
        if turn == EVERY - 1:
            start = time.perf_counter()
            self.snapshotter.last("benchmark", step)
            self.times["at once"].append(time.perf_counter() - start)


def run(folder: Path, turns: int) -> dict[str, list[float]]:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ.update(
        {"TORCHELASTIC_RUN_ID": "bench", "TORCHELASTIC_USE_AGENT_STORE": "True", "RANK": "0", "LOCAL_RANK": "0",
         "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    )  # fmt: skip
    measured = Turns(folder)
    trainer = pl.Trainer(
        max_steps=3 * EVERY * (turns + 1) + 2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        callbacks=[ElasticCallback(snapshot_every_n_steps=3 * EVERY, run_dir=str(folder)), measured],
    )  # fmt: skip
    data = TensorDataset(torch.randn(4096, 2048))
    trainer.fit(Mlp(), DataLoader(data, batch_size=128))
    return measured.times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory() as path:
        times = run(Path(path), 3 if quick else 15)
    checkpoint, at_once = (statistics.median(times[name]) for name in ("checkpoint", "at once"))
    rows = [
        [name, f"{1000 * statistics.median(found):.1f}", f"{1000 * min(found):.1f} to {1000 * max(found):.1f}",
         f"{100 * statistics.median(found) / checkpoint:.1f} %", f"{100 * statistics.median(found) / at_once:.1f} %"]
        for name, found in (
            ("`trainer.save_checkpoint` to the disk", times["checkpoint"]),
            ("snapshot into memory, waited for", times["at once"]),
            ("periodic snapshot, stall", times["stall"]),
        )
    ]  # fmt: skip
    print(
        table(
            "Snapshots",
            ["200 MB of state", "median, ms", "min to max, ms", "of a checkpoint", "of a snapshot waited for"],
            rows,
        )
    )
    print(
        f"A step takes {1000 * statistics.median(times['step']):.0f} ms, the two after a periodic snapshot "
        f"{1000 * statistics.median(times['busy']):.0f} ms (n = {len(times['stall'])}).\n"
    )


if __name__ == "__main__":
    main()
