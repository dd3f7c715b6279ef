"""One process as a whole elastic run of world size 1: a scripted agent assigns, stops, fails and finishes it.

Faults are data: a `Disturbance` says at which hook and step something happens. `trace` is what a run did, hook by hook.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, DistributedSampler

from dtf_lightning.elastic.events import ELASTIC_EVENTS
from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.link.worker_link import WorkerLink
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.events.log import read_events
from support.elastic.scripted_agent import DEADLINE, ScriptedAgent, welcome

NUM_SAMPLES = 24
BATCH = 4
MODULES_OWN = "loaders of the module"


class RunOfOne:
    """Answers the worker as a leader would who has only this one: every `Ready` gets the next generation."""

    def __init__(self, folder: Path, store_port: int, **changed: Any) -> None:
        self.agent = ScriptedAgent(folder, welcome(store_port=store_port, **changed))
        self.store_port = store_port
        self.instance = uuid.uuid4().hex
        self.heard: list[messages.Message] = []
        self.disturbances: list[Disturbance] = []
        self._heard_more = threading.Condition()
        self._pump = threading.Thread(target=self._answer, name="run-of-one", daemon=True)
        self._pump.start()

    def generation(self, number: int) -> dict[str, Any]:
        return Generation(
            number=number,
            members=(Member(node="n1", incarnation=1, num_workers=1),),
            reason="test",
            kind="start" if number == 1 else "mixed",
            instance=self.instance,
            store_host="127.0.0.1",
            store_port=self.store_port,
            formed_at=time.time(),
        ).to_json()

    def prepare(self, link: WorkerLink) -> None:
        """Announce a planned rescale: it stops two boundaries after the one where the worker is."""
        self.agent.send(messages.Prepare(target=link.generation + 1))
        _wait(link, lambda: link.stopping is not None)

    def fail(self, link: WorkerLink) -> None:
        """Declare the generation broken."""
        self.agent.send(messages.Fail(target=link.generation + 1, reason="n2#1 died"))
        _wait(link, lambda: link.broken)

    def abort(self, link: WorkerLink) -> None:
        """End the run."""
        self.agent.send(messages.Abort(reason="on purpose"))
        _wait(link, lambda: link.abort_reason is not None)

    def wait_to_hear(self, kind: type[messages.Message]) -> messages.Message:
        """What the worker said of this kind, now or soon."""
        with self._heard_more:
            assert self._heard_more.wait_for(lambda: any(isinstance(one, kind) for one in self.heard), DEADLINE), kind
        return next(one for one in self.heard if isinstance(one, kind))

    def kinds(self) -> list[str]:
        """What the worker said, in order, but for what it tells those who watch the run."""
        return [message.kind for message in self.heard if not isinstance(message, messages.Happened)]

    def num_generations(self) -> int:
        return self.kinds().count("active")

    def close(self) -> None:
        self.agent.close()
        self.agent.said.put(None)  # if no worker ever came
        self._pump.join(DEADLINE)

    def _answer(self) -> None:
        while (message := self.agent.said.get()) is not None:
            with self._heard_more:
                self.heard.append(message)
                self._heard_more.notify_all()
            match message:
                case messages.Ready():
                    number = message.after + 1
                    self.agent.send(messages.Assign(generation=self.generation(number), rank=0, world_size=1))
                case messages.At():
                    self.agent.send(messages.Stop(target=message.target, boundary=message.boundary + 2))
                case messages.Suspect():
                    self.agent.send(messages.Fail(target=message.generation + 1, reason="suspected"))
                case messages.Finished():
                    self.agent.send(messages.Finish(reason="all done"))


def _wait(link: WorkerLink, condition: Any) -> None:
    with link._announced.changed:
        assert link._announced.changed.wait_for(condition, DEADLINE), "the worker never heard the agent"


@dataclass(frozen=True)
class Disturbance:
    """Something that happens once, the first time that `hook` runs at `step` (global steps done)."""

    hook: str
    step: int
    kind: str = "planned"
    """`planned`, `told` (a peer died, the agent says so first) or `collective` (a collective fails first)."""


class Disturber(Callback):
    """Makes the disturbances happen, each once; the last of the callbacks, where ordering can be chosen."""

    def __init__(self, run: RunOfOne, disturbances: Iterable[Disturbance]) -> None:
        self.run = run
        run.disturbances = list(disturbances)  # not here, where a rescale would put back what has happened

    @property
    def left(self) -> list[Disturbance]:
        """What has not happened yet."""
        return self.run.disturbances

    def __deepcopy__(self, memo: Any) -> Disturber:
        return self  # averages copy the module, which holds this

    def happen(self, trainer: pl.Trainer, hook: str) -> None:
        for disturbance in self.left:
            if (disturbance.hook, disturbance.step) != (hook, trainer.global_step) or trainer.sanity_checking:
                continue
            self.left.remove(disturbance)
            link = trainer.strategy.run.membership.link
            match disturbance.kind:
                case "planned":
                    self.run.prepare(link)
                case "told":
                    self.run.fail(link)
                    raise RuntimeError("[gloo] Connection closed by peer")
                case "collective":
                    raise RuntimeError("[gloo] Connection closed by peer")
            return


HOOKS = (
    "on_fit_start", "on_fit_end", "on_train_start", "on_train_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_train_batch_start", "on_train_batch_end", "on_before_zero_grad", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "on_validation_start", "on_validation_end", "on_validation_epoch_start",
    "on_validation_epoch_end", "on_validation_batch_start", "on_validation_batch_end", "on_sanity_check_start",
)  # fmt: skip


class Recorder(Callback):
    """Every hook that ran, with the step at which it did."""

    def __init__(self) -> None:
        self.trace: list[tuple[str, int]] = []

    def count(self, hook: str) -> int:
        return sum(name == hook for name, _ in self.trace)


def _recording(hook: str) -> Any:
    def record(self: Recorder, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.trace.append((hook, trainer.global_step))

    return record


def _disturbing(hook: str) -> Any:
    def disturb(self: Disturber, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self.happen(trainer, hook)

    return disturb


for _hook in HOOKS:
    setattr(Recorder, _hook, _recording(_hook))
for _hook in (*HOOKS, "on_save_checkpoint"):  # which also runs where a state is packed: not recorded
    setattr(Disturber, _hook, _disturbing(_hook))


class Data(torch.utils.data.Dataset):
    """Samples with their own number, so that it can be seen which one was drawn."""

    def __init__(self, size: int = NUM_SAMPLES) -> None:
        generator = torch.Generator().manual_seed(7)
        # (size, 4), (size, 1)
        self.x = torch.randn(size, 4, generator=generator)
        self.y = self.x.sum(dim=1, keepdim=True)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        return index, self.x[index], self.y[index]


class Net(pl.LightningModule):
    """Dropout and BatchNorm, so that a random number or a batch too many shows in the weights."""

    disturber: Disturber | None = None

    def __init__(self, *, scheduler: str | None = None, **overrides: Any) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        )
        self.scheduler = scheduler
        self.losses: list[float] = []
        self.drawn: list[list[int]] = []
        self.validated: list[int] = []
        for name, value in overrides.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        index, x, y = batch
        loss = torch.nn.functional.mse_loss(self(x), y)
        self.losses.append(loss.item())
        self.drawn.append(index.tolist())
        if not self.trainer.barebones:
            self.log("loss", loss, on_step=True, on_epoch=True)
        self._happen("training_step")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        index, x, y = batch
        if not self.trainer.sanity_checking:
            self.validated += index.tolist()
        if not self.trainer.barebones:
            self.log("val_loss", torch.nn.functional.mse_loss(self(x), y))
        self._happen("validation_step")

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, closure)
        self._happen("after_step")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        match self.scheduler:
            case "step":
                return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "step"}]
            case "epoch":
                return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
            case "onecycle":
                steps = int(self.trainer.estimated_stepping_batches)
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]
            case "plateau":
                schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, mode="max")
                return [optimizer], [{"scheduler": schedule, "monitor": "val_loss"}]
        return optimizer

    def _happen(self, place: str) -> None:
        if self.disturber is not None:
            self.disturber.happen(self.trainer, place)


def train_loader(**changed: Any) -> DataLoader:
    return DataLoader(changed.pop("dataset", None) or Data(), **{"batch_size": BATCH, "shuffle": True, **changed})


def plain_loader(**changed: Any) -> DataLoader:
    """What Lightning itself would make of `train_loader` in a distributed run of one."""
    data = changed.pop("dataset", None) or Data()
    shuffle = changed.pop("shuffle", True)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, shuffle=shuffle, seed=0)
    return DataLoader(data, **{"batch_size": BATCH, "sampler": sampler, **changed})


def val_loader() -> DataLoader:
    return DataLoader(Data(8), batch_size=BATCH)


@dataclass
class Outcome:
    """What is left of a fit, to compare with another."""

    trainer: pl.Trainer
    model: Net
    recorder: Recorder

    @property
    def trace(self) -> list[tuple[str, int]]:
        return self.recorder.trace

    def state(self) -> dict[str, torch.Tensor]:
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def learning_rates(self) -> list[float]:
        return [group["lr"] for optimizer in self.trainer.optimizers for group in optimizer.param_groups]

    def metrics(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.trainer.callback_metrics.items()}


def fit(
    folder: Path,
    *,
    elastic: bool,
    model: Net | None = None,
    callbacks: Iterable[Callback] = (),
    loader: Any = None,
    validate: Any = True,
    ckpt_path: Any = None,
    tail: Any = None,
    ledger: bool = False,
    learning_rate: Any = None,
    batch: Any = "per_rank",
    global_batch: int | None = None,
    elastic_seed: int | None = None,
    snapshots: dict[str, Any] | None = None,
    virtual_ranks: int | None = None,
    run: RunOfOne | None = None,
    disturbances: Iterable[Disturbance] = (),
    datamodule: Any = None,
    seed: int = 3,
    **trainer_arguments: Any,
) -> Outcome:
    """Fit once, elastically or not, always from the same weights and random numbers."""
    torch.manual_seed(seed)
    model = model or Net()
    for layer in model.layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    recorder = Recorder()
    everyone: list[Callback] = [recorder, *callbacks]
    if elastic:
        elastic_callback = ElasticCallback(
            tail=tail,
            ledger=ledger,
            learning_rate=learning_rate,
            batch=batch,
            global_batch=global_batch,
            seed=elastic_seed,
            **(snapshots or {}),
            virtual_ranks=virtual_ranks,
        )
        everyone.insert(0, elastic_callback)
    if run is not None:
        model.disturber = Disturber(run, disturbances)
        everyone.append(model.disturber)
    arguments = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 3, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder,
        "num_sanity_val_steps": 0, "log_every_n_steps": 1,
    }  # fmt: skip
    arguments.update(trainer_arguments)
    if arguments.get("barebones"):
        for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary",
                     "num_sanity_val_steps", "log_every_n_steps"):  # fmt: skip
            arguments.pop(name)
    trainer = pl.Trainer(callbacks=everyone, **arguments)
    torch.manual_seed(seed + 1)
    if datamodule is not None:
        trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
    else:
        if loader is None:
            loader = train_loader() if elastic else plain_loader()
        own = loader is MODULES_OWN
        trainer.fit(
            model,
            None if own else loader,
            None if own else val_loader() if validate is True else validate,
            ckpt_path=ckpt_path,
        )
    if run is not None:
        assert not model.disturber.left, f"never happened: {model.disturber.left}"
    return Outcome(trainer, model, recorder)


def events_of(run_dir: Path, kind: type[Any]) -> list[Any]:
    """The events of one kind in the run's folder."""
    return [
        e for path in run_dir.glob("events/*.jsonl") for e in read_events(ELASTIC_EVENTS, path) if isinstance(e, kind)
    ]


def assert_same_weights(one: Outcome, other: Outcome) -> None:
    mine, theirs = one.state(), other.state()
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, f"differ: {different}"


def assert_same_training(one: Outcome, other: Outcome) -> None:
    """Bitwise: losses, sample order, weights, buffers, learning rates, logged metrics."""
    assert one.model.drawn == other.model.drawn
    assert one.model.losses == other.model.losses
    assert_same_weights(one, other)
    assert one.learning_rates() == other.learning_rates()
    assert one.metrics() == other.metrics()
    assert one.trainer.global_step == other.trainer.global_step
    assert one.trainer.current_epoch == other.trainer.current_epoch
