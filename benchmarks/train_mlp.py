"""The script that the benchmarks train: an MLP with Adam on data made up on the fly. Not meant to be run by hand.

Every batch's end is one line in the node's file: seconds since the epoch, process id, world size, global step. The file has the name
that `BENCH_NODE` says; without it, each process has a file of its own.
"""

import argparse
import os
import time
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset

WIDTHS = {"tiny": (64, 64), "5M": (2048, 1536, 512), "20M": (4096, 3072, 1024)}
INPUTS = 512


class Noise(Dataset):
    """Samples (INPUTS,) and targets (1,): made once, so that a step is the model's work and not the loader's."""

    def __init__(self, size: int) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(256, INPUTS, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int):
        return self.x[index % 256], self.y[index % 256]


class MLP(L.LightningModule):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        width = INPUTS
        for following in WIDTHS[kind]:
            layers += [nn.Linear(width, following), nn.ReLU()]
            width = following
        self.network = nn.Sequential(*layers, nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.network(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class StepTimes(Callback):
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def on_train_batch_end(self, trainer, *_) -> None:
        os.write(self.file, f"{time.time():.6f} {os.getpid()} {trainer.world_size} {trainer.global_step}\n".encode())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["live", "restart", "plain", "elastic"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", choices=sorted(WIDTHS), default="5M")
    parser.add_argument("--dataset-size", type=int, default=100_000)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--global-batch", type=int)
    parser.add_argument("--virtual-ranks", type=int)
    parser.add_argument("--watched", action="store_true", help="with DivergenceStopping")
    parser.add_argument("--ledger", action="store_true", help="with the ledger that `dtf audit` reads")
    parser.add_argument("--stop-file", type=Path, help="end with the epoch in which it appears")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    callbacks: list[Callback] = [
        StepTimes(arguments.folder / "steps" / f"{os.environ.get('BENCH_NODE', os.getpid())}.txt")
    ]
    options = {}
    last = arguments.folder / "checkpoints" / "last.ckpt"
    if arguments.mode in ("live", "elastic"):
        from dtf_lightning import ElasticCallback

        callbacks.append(
            ElasticCallback(
                run_dir=str(arguments.folder / "run"),
                batch="per_rank" if arguments.global_batch is None else "global",
                global_batch=arguments.global_batch,
                virtual_ranks=arguments.virtual_ranks,
                ledger=arguments.ledger,
            )
        )
        if arguments.watched:
            from dtf_lightning import DivergenceStopping

            callbacks.append(DivergenceStopping())
        if arguments.stop_file:
            from dtf_lightning.elastic.demo.digits import StopWhenTold

            callbacks.append(StopWhenTold(arguments.stop_file))
    else:
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
        options = {"strategy": "ddp", "devices": local, "num_nodes": world // local}
    if arguments.mode == "restart":
        callbacks.append(ModelCheckpoint(dirpath=last.parent, every_n_train_steps=50, save_last=True, save_top_k=0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=-1 if arguments.max_steps < 0 else None,
        max_steps=arguments.max_steps,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=arguments.mode == "restart",
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=arguments.folder,
        **options,
    )
    loader = DataLoader(
        Noise(arguments.dataset_size),
        batch_size=arguments.batch_size,
        shuffle=True,
        num_workers=arguments.num_workers,
        persistent_workers=arguments.num_workers > 0,
    )
    resume = str(last) if arguments.mode == "restart" and last.exists() else None
    trainer.fit(MLP(arguments.model), loader, ckpt_path=resume)


if __name__ == "__main__":
    main()
