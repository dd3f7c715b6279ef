"""The script that `quality.py` trains: five networks side by side in one run, one per seed. Not meant to be run by hand.

Each network has its own start, its own order of the samples and its own dropout; they share the worlds that the run goes
through. Their losses are added, so that each gets the gradient that it would get alone.

Where the run is to be rescaled, all workers wait at the beginning of an epoch until the benchmark has brought its
nodes and the agreement on the new world is under way; training then goes on and is rescaled two steps later.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import ElasticCallback

SEEDS = 5
EPOCHS = {"digits": 16, "characters": 8}
BATCH = {"digits": 16, "characters": 32}
"""Per worker; the undisturbed run has two."""
RATES = {("digits", "sgd"): 0.05, ("digits", "adam"): 2e-3, ("characters", "adam"): 2e-3}
CONTEXT, NUM_TRAINED, NUM_HELD_OUT = 16, 16384, 4096


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """scikit-learn's: (1437, 64) and (360, 64) in [0, 1], their labels, number of classes."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(data.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(data.target)[order]
    return x[:1437], y[:1437], x[1437:], y[1437:], 10


def characters() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Python's own reference texts: 16 characters, and the one that follows; the last tenth of the text is held out."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: number for number, character in enumerate(sorted(set(text)))}
    # (length,), (length - CONTEXT, CONTEXT + 1)
    numbers = torch.tensor([alphabet[character] for character in text])
    windows = numbers.unfold(0, CONTEXT + 1, 1)
    generator = torch.Generator().manual_seed(0)
    border = len(windows) * 9 // 10
    trained = windows[torch.randperm(border - CONTEXT, generator=generator)[:NUM_TRAINED]]
    held_out = windows[border + torch.randperm(len(windows) - border, generator=generator)[:NUM_HELD_OUT]]
    return trained[:, :-1], trained[:, -1], held_out[:, :-1], held_out[:, -1], len(alphabet)


def network(task: str, num_classes: int) -> nn.Module:
    if task == "digits":
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, num_classes))
    return nn.Sequential(
        nn.Embedding(num_classes, 16),
        nn.Flatten(),
        nn.Linear(16 * CONTEXT, 128),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(128, num_classes),
    )


class SideBySide(L.LightningModule):
    def __init__(self, task: str, optimizer: str, num_classes: int) -> None:
        super().__init__()
        self.task, self.optimizer = task, optimizer
        networks = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            networks.append(network(task, num_classes))
        self.networks = nn.ModuleList(networks)

    def losses(self, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        """x: (batch, SEEDS, ...), y: (batch, SEEDS)."""
        return [cross_entropy(one(x[:, seed]), y[:, seed]) for seed, one in enumerate(self.networks)]

    def training_step(self, batch, batch_idx):
        return sum(self.losses(*batch))

    def configure_optimizers(self):
        rate = RATES[self.task, self.optimizer]
        if self.optimizer == "sgd":
            optimizer = torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9)
        else:
            optimizer = torch.optim.Adam(self.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS[self.task])
        return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]


class Phases(Callback):
    """Waits where the world is to change, and writes down the held-out losses after each epoch."""

    def __init__(self, folder: Path, waits: list[int], x: torch.Tensor, y: torch.Tensor) -> None:
        self.folder, self.waits = folder, waits
        # (held out, SEEDS, ...): all networks are asked the same
        self.x = x.unsqueeze(1).expand(-1, SEEDS, *x.shape[1:])
        self.y = y.unsqueeze(1).expand(-1, SEEDS)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch in self.waits and not (self.folder / f"go-{trainer.current_epoch}").exists():
            if trainer.is_global_zero:
                (self.folder / f"at-{trainer.current_epoch}").touch()
            while not (self.folder / f"go-{trainer.current_epoch}").exists():
                threading.Event().wait(0.02)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if not trainer.is_global_zero:
            return
        pl_module.eval()
        losses = [loss.item() for loss in pl_module.losses(self.x, self.y)]
        pl_module.train()
        line = {
            "epoch": trainer.current_epoch,
            "world": trainer.world_size,
            "step": trainer.global_step,
            "losses": losses,
        }
        with (self.folder / "curve.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")


def come_together(folder: Path) -> None:
    """Nodes that join together check in together, however long each has taken to start."""
    names = os.environ.get("BENCH_TOGETHER", "")
    if names:
        (folder / f"up-{os.environ['BENCH_NODE']}").touch()
        while not all((folder / f"up-{name}").exists() for name in names):
            threading.Event().wait(0.02)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--task", choices=sorted(EPOCHS), required=True)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], required=True)
    parser.add_argument("--rule", help="of the learning rate; without it the batch is global")
    parser.add_argument("--waits", type=int, nargs="*", default=[])
    parser.add_argument(
        "--until", type=int, help="epochs; a checkpoint is then saved, from which the next life goes on"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    task = arguments.task
    x, y, held_out_x, held_out_y, num_classes = (digits if task == "digits" else characters)()
    orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) for seed in range(SEEDS)]
    data = TensorDataset(torch.stack([x[o] for o in orders], dim=1), torch.stack([y[o] for o in orders], dim=1))
    policy = (
        {"batch": "global", "global_batch": 2 * BATCH[task]}
        if arguments.rule is None
        else {"learning_rate": arguments.rule, "tail": "exact"}
    )
    come_together(arguments.folder)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=arguments.until or EPOCHS[task],
        callbacks=[
            ElasticCallback(ledger=True, run_dir=str(arguments.folder / "run"), **policy),
            Phases(arguments.folder, arguments.waits, held_out_x, held_out_y),
        ],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=arguments.folder,
    )
    last = arguments.folder / "last.ckpt"
    loader = DataLoader(data, batch_size=BATCH[task], shuffle=True)
    trainer.fit(SideBySide(task, arguments.optimizer, num_classes), loader, ckpt_path=last if last.exists() else None)
    if arguments.until:
        trainer.save_checkpoint(last)


if __name__ == "__main__":
    main()
