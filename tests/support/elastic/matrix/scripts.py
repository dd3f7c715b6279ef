"""Scripts that go through rescales in real processes: groups of callbacks that may be used together, with a watcher.

The watcher notes digests of all that members must have in common, after every step, validation and epoch. Whoever
compares them finds the first step, and the name, at which two members differ.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import Precision, TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook, fp16_compress_wrapper

from support.elastic.matrix.subjects import SUBJECTS, plain
from support.elastic.recipes import WithBackbone
from support.elastic.training import FEATURES, Model, Training


@dataclass(frozen=True, kw_only=True)
class Script:
    """One way to train."""

    subjects: tuple[str, ...] = ()
    """Callbacks, by the names of the table."""
    strategies: tuple[str, ...] = ("single_device",)
    """What of Lightning's strategies it uses, by the names of the table."""
    strategy: Callable[[], Any] = lambda: "auto"
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Training`."""
    model: type[Model] = Model
    extra_epochs: int = 0
    """That a callback adds."""


class Unfrozen(Model):
    """Its optimizer begins with what is not frozen, as the documentation of `BaseFinetuning` has it."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=1e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 5)]


class LeavesOut(Model):
    """In every second step a layer has no part in the loss."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.more = torch.nn.Linear(FEATURES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if self.global_step % 2 else loss + self.more(batch[0]).square().mean()


# Each rank's own running statistics, as with plain DDP: nothing to compare.
_PLAIN = {"batch_norm": False}

SCRIPTS: dict[str, Script] = {
    "monitors": Script(
        subjects=(
            "EarlyStopping", "LearningRateMonitor", "DeviceStatsMonitor", "ModelCheckpoint", "Timer", "ModelSummary",
            "LambdaCallback", "OnExceptionCheckpoint", "TQDMProgressBar",
        ),
        training=_PLAIN,
    ),
    "averages": Script(
        subjects=("EMAWeightAveraging", "GradientAccumulationScheduler", "RichProgressBar", "RichModelSummary"),
        training=_PLAIN,
    ),
    "throughput": Script(subjects=("WeightAveraging", "ThroughputMonitor"), training=_PLAIN),
    "backbone": Script(subjects=("BackboneFinetuning",), model=WithBackbone, training=_PLAIN),
    "freezes": Script(subjects=("BaseFinetuning",), model=Unfrozen, training=_PLAIN),
    "swa": Script(subjects=("StochasticWeightAveraging",), training={"schedule": "epoch"}, extra_epochs=1),
    "pruning": Script(subjects=("ModelPruning",), training=_PLAIN),
    "unused": Script(
        strategies=(
            "DDPStrategy", "find_unused_parameters", "skip_all_reduce_unused_params", "process_group_backend",
            "bucket_cap_mb_list",
        ),
        strategy=lambda: DDPStrategy(
            find_unused_parameters=True, skip_all_reduce_unused_params=True, process_group_backend="gloo",
            bucket_cap_mb_list=[1, 2],
        ),
        model=LeavesOut,
    ),
    "static": Script(
        strategies=(
            "static_graph", "gradient_as_bucket_view", "bucket_cap_mb", "batched_grad_copy", "forward_sync_buffers",
            "broadcast_buffers", "timeout", "checkpoint_io", "precision_plugin",
        ),
        strategy=lambda: DDPStrategy(
            static_graph=True, gradient_as_bucket_view=True, bucket_cap_mb=1, batched_grad_copy=True,
            forward_sync_buffers=True, broadcast_buffers=False, timeout=timedelta(seconds=60),
            checkpoint_io=TorchCheckpointIO(), precision_plugin=Precision(),
        ),
    ),
    "compressed": Script(
        strategies=("ddp_comm_hook", "ddp_comm_wrapper"),
        strategy=lambda: DDPStrategy(ddp_comm_hook=allreduce_hook, ddp_comm_wrapper=fp16_compress_wrapper),
        training=_PLAIN,
    ),
}  # fmt: skip


def callbacks(name: str, folder: Path) -> list[Callback]:
    """What the script of this name adds to the trainer."""
    made: list[tuple[Callback, frozenset[str]]] = [
        (callback, SUBJECTS[subject].own)
        for subject in SCRIPTS[name].subjects
        for callback in SUBJECTS[subject].make(folder / subject)
    ]
    return [*(callback for callback, _ in made), Watcher(made, folder)]


def logged_steps(folder: Path) -> list[int]:
    """Steps of the rows in which a loss was logged."""
    rows = [row for path in folder.glob("csv/*/metrics.csv") for row in csv.DictReader(path.open())]
    return [int(row["step"]) for row in rows if row["loss_step"]]


class Watcher(Callback):
    """Writes a line of digests after every step, validation and epoch."""

    def __init__(self, watched: list[tuple[Callback, frozenset[str]]], folder: Path) -> None:
        self._watched = watched
        self._path = folder / f"watched-{os.getpid()}.jsonl"
        self._step = -1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step != self._step:  # not in an accumulation
            self._step = trainer.global_step
            self._note("step", trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._note("validation", trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._note("epoch_start", trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._note("epoch_end", trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._note("end", trainer, pl_module)

    def _note(self, point: str, trainer: Any, pl_module: Any) -> None:
        seen = {name: digest(value) for name, value in self._seen(trainer, pl_module)}
        with self._path.open("a") as file:
            file.write(json.dumps({"point": point, "step": trainer.global_step, "seen": seen}) + "\n")

    def _seen(self, trainer: Any, pl_module: Any) -> Iterator[tuple[str, Any]]:
        yield "epoch", trainer.current_epoch
        yield "should_stop", trainer.should_stop
        yield "accumulate", trainer.accumulate_grad_batches
        for name, parameter in pl_module.named_parameters():
            yield f"parameter {name}", parameter
            yield f"requires_grad {name}", parameter.requires_grad
        for number, optimizer in enumerate(trainer.optimizers):
            state = optimizer.state_dict()
            yield f"optimizer {number} groups", state["param_groups"]
            for index, entry in state["state"].items():
                yield f"optimizer {number} state {index}", entry
        for number, config in enumerate(trainer.lr_scheduler_configs):
            yield f"scheduler {number}", {"kind": type(config.scheduler).__name__, **config.scheduler.state_dict()}
        for number, (callback, own) in enumerate(self._watched):
            name = f"callback {number} {type(callback).__name__}"
            for part, values in (("attribute", vars(callback)), ("state", callback.state_dict())):
                for key, value in values.items():
                    if key not in own:
                        yield f"{name} {part} {key}", value


def digest(value: Any) -> str:
    """A short digest, with the value itself where that is short."""
    text = repr(plain(value, 6))
    return text if len(text) < 60 else hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(folder: Path, *, without: set[int]) -> list[str]:
    """What members saw differently, each thing where it first did; `without` the processes that were killed."""
    at: dict[tuple[int, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for path in sorted(folder.glob("watched-*.jsonl")):
        if int(path.stem.partition("-")[2]) in without:
            continue
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            at[entry["step"], entry["point"]][path.stem] = entry["seen"]  # done again: the last one counts
    found: dict[str, str] = {}
    for (step, point), by_member in sorted(at.items()):
        names = {name for seen in by_member.values() for name in seen}
        for name in sorted(names):
            values = {member: seen.get(name, "nothing") for member, seen in by_member.items()}
            if len(set(values.values())) > 1:
                found.setdefault(name, f"after {point} at step {step}: {name}: {values}")
    return list(found.values())
