"""The demo's last act: a training fills the idle half of the pool, a suite arrives and gets a device, the training takes it back.

The script is a user's: Lightning, and `ElasticCallback()`. What it trained is asked of `dtf audit`, as anybody would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dtf_lightning import environment
from dtf_lightning.farm.client import Client

SAMPLES = 512
"""Of an epoch."""
PARTS = 2
AUDIT_TIMEOUT = 60.0

_SCRIPT = '''"""Train a small network until a file appears: python train.py FOLDER. Its world's size is kept in FOLDER/world."""

import sys
import time
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import ElasticCallback

folder = Path(sys.argv[1])


class Fit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        time.sleep(0.02)  # a step of a larger network, without its load
        return torch.nn.functional.mse_loss(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Story(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero:
            (folder / "world").write_text(str(trainer.world_size))

    def on_train_epoch_end(self, trainer, *_):
        trainer.should_stop = trainer.strategy.broadcast((folder / "stop").exists())


x = torch.randn(SAMPLES, 8, generator=torch.Generator().manual_seed(0))
trainer = L.Trainer(
    accelerator="cpu", max_epochs=-1, default_root_dir=folder, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[ElasticCallback(ledger=True), Story()],
)
trainer.fit(Fit(), DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=8, shuffle=True))
'''


@dataclass(frozen=True, kw_only=True)
class Story:
    """What became of the training and of the suite."""

    training: str
    accepted: tuple[str, ...]
    """The training, its parts, and the suite's tasks."""
    unfinished: tuple[str, ...]
    """A sentence on each task that did not complete."""
    borrowings: int
    audit: Mapping[str, Any]
    """As `dtf audit --json` says it."""


def summary(story: Story) -> str:
    """Say in one line what the training gave and lost. Pure."""
    lost, repeated = _losses(story.audit)
    times = "once" if story.borrowings == 1 else f"{story.borrowings} times"
    return (
        f"the training: lent a device {times} and took it back, {story.audit['committed_steps']} steps, "
        f"{lost} samples lost, {repeated} repeated"
    )


def problems(story: Story) -> list[str]:
    """Return what is not as it should be; nothing if the training lost nothing and gave something. Pure."""
    found = list(story.unfinished)
    lost, repeated = _losses(story.audit)
    if lost or repeated:
        found.append(f"the training lost {lost} samples and repeated {repeated}")
    if not story.borrowings:
        found.append("the training lent no device")
    return found


def _losses(audit: Mapping[str, Any]) -> tuple[int, int]:
    epochs: Sequence[Mapping[str, Any]] = audit["epochs"]
    return sum(len(one["missing"]) for one in epochs), sum(len(one["repeated"]) for one in epochs)


def play(
    client: Client,
    folder: Path,
    endpoint: str,
    *,
    suite: Callable[[], list[str]],
    act: Callable[[str], object],
    until: Callable[[Callable[[], object], str], object],
) -> Story:
    """Play the act.

    Args:
        folder: new; for the script and its run.
        endpoint: of an etcd at which the parts meet.
        suite: submits tasks for one device more than are idle; returns their ids.
        act: says what happens.
        until: waits for something, named; raises where it does not come about.
    """
    folder.mkdir(parents=True)
    script, world = folder / "train.py", folder / "world"
    script.write_text(_SCRIPT.replace("SAMPLES", str(SAMPLES)))
    training = client.train(
        str(script), [str(folder)], endpoint=endpoint, workers=(1, PARTS), python=sys.executable, name="training"
    )
    act("a training fills half of the pool")

    def told() -> dict[str, Any]:
        metadata = client.task(training).raw.get("metadata") or {}
        return dict(metadata.get("training") or {})

    def trains_with(size: int) -> bool:
        return world.exists() and world.read_text() == str(size)

    until(lambda: trains_with(PARTS), "all parts to train")
    act(f"it trains on {' and '.join(sorted(told()['workers'].values()))}; a suite arrives that needs one device more")
    tasks = suite()
    until(lambda: told().get("borrowings"), "the training to give a device")
    lent = told()["borrowings"][0]
    act(
        f"{lent['worker']} is the suite's {_seconds(lent['asked'], lent['left']):.1f} s after it was asked for; the others train on"
    )
    until(lambda: all(client.task(task).done for task in tasks), "the suite to end")
    until(lambda: all(one["back"] for one in told()["borrowings"]) and trains_with(PARTS), "the training to be whole")
    act(f"the suite has ended; the training trains on {' and '.join(sorted(told()['workers'].values()))} again")
    number = int(told()["num_borrowings"])
    (folder / "stop").touch()
    until(lambda: client.task(training).done, "the training to end")
    parts = [client.task(f"{training}[{index}]").task_id for index in range(PARTS)]
    infos = [client.task(task) for task in (training, *parts, *tasks)]
    return Story(
        training=training,
        accepted=tuple(info.task_id for info in infos),
        unfinished=tuple(
            f"{info.raw['name']} is {info.status}: {info.reason}" for info in infos if info.status != "completed"
        ),
        borrowings=number,
        audit=_audit(folder),
    )


def _audit(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "dtf_lightning", "audit", str(folder), "--samples", str(SAMPLES), "--json"],
        check=True,
        capture_output=True,
        timeout=AUDIT_TIMEOUT,
        env=environment.for_child({}, without_prefix=environment.FARM_UP),
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _seconds(begin: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds()
