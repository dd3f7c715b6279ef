"""Lightning's demos, and the examples of its documentation, in a run of one: as plain Lightning through stops and deaths."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch import demos
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos import boring_classes as boring
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from lightning.pytorch.demos.transformer import LightningTransformer
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from dtf_lightning import ElasticCallback
from dtf_lightning.errors import SettingsError
from support.elastic.matrix.table import DEMOS, PATTERNS, Verdict
from support.elastic.run_of_one import Disturbance, Disturber, RunOfOne, train_loader

WORDS = 16


def sequences() -> DataLoader[Any]:
    return DataLoader(tokens(), batch_sampler=SequenceSampler(tokens(), 4))


class Fits:
    """A module, and the loader or data module that it is trained with."""

    def __init__(self, module: pl.LightningModule, data: Any, *callbacks: Callback, **trainer: Any) -> None:
        self.module, self.data, self.callbacks, self.trainer = module, data, callbacks, trainer


def tokens(number: int = 24) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    # (number, 6), (number, 6)
    words = torch.randint(WORDS, (number, 7), generator=generator)
    return TensorDataset(words[:, :-1].contiguous(), words[:, 1:].contiguous())


def vectors(kind: Callable[..., Any] = boring.RandomDataset, size: int = 32) -> Any:
    torch.manual_seed(5)
    return DataLoader(kind(size, 24), batch_size=4)


class Classifies(pl.LightningModule):
    """The demo's convolutions, in a module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = boring.Net()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        images, labels = batch
        return nn.functional.nll_loss(self.net(images), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Recurs(pl.LightningModule):
    """The demo's LSTM, without a state between batches."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=WORDS, ninp=8, nhid=8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        output, _ = self.model(inputs, self.model.init_hidden(inputs.size(0)))
        return nn.functional.nll_loss(output, targets.flatten())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class Dictionaries(boring.BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.step(batch["a"])}


class Transforms(LightningTransformer):
    def prepare_data(self) -> None:
        """Download nothing."""


class RecursOn(LightningLSTM):
    def prepare_data(self) -> None:
        """Download nothing."""


def images() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(
        TensorDataset(torch.randn(8, 1, 28, 28, generator=generator), torch.arange(8)), batch_size=2, shuffle=True
    )


HELD: dict[str, Callable[[], Fits]] = {
    "BoringDataModule": lambda: Fits(boring.BoringModel(), boring.BoringDataModule(), limit_train_batches=6),
    "BoringModel": lambda: Fits(boring.BoringModel(), vectors()),
    "DemoModel": lambda: Fits(boring.DemoModel(), vectors()),
    "LightningTransformer": lambda: Fits(Transforms(vocab_size=WORDS), DataLoader(tokens(8))),
    "Net": lambda: Fits(Classifies(), images()),
    "RandomDictDataset": lambda: Fits(Dictionaries(), vectors(boring.RandomDictDataset)),
    "SimpleLSTM": lambda: Fits(Recurs(), DataLoader(tokens(), batch_size=4, shuffle=True)),
}
REFUSED: dict[str, tuple[Callable[[], Fits], str]] = {
    "BoringDataModuleNoLen": (
        lambda: Fits(boring.BoringModel(), boring.BoringDataModuleNoLen()), "an IterableDataset without streams"
    ),
    "IterableBoringDataModule": (
        lambda: Fits(boring.BoringModel(), boring.IterableBoringDataModule()), "an IterableDataset without streams"
    ),
    "LightningLSTM": (
        lambda: Fits(RecursOn(WORDS), sequences(), use_distributed_sampler=False),
        "has a SequenceSampler where a plain batch size is expected",
    ),
    "ManualOptimBoringModel": (
        lambda: Fits(boring.ManualOptimBoringModel(), vectors()), "uses manual optimization.*Set automatic_optimization=True"
    ),
    "RandomIterableDataset": (
        lambda: Fits(boring.BoringModel(), DataLoader(boring.RandomIterableDataset(32, 24))), "without streams.*num_shards"
    ),
    "RandomIterableDatasetWithLen": (
        lambda: Fits(boring.BoringModel(), DataLoader(boring.RandomIterableDatasetWithLen(32, 24))),
        "without streams.*num_shards",
    ),
    "SequenceSampler": (
        lambda: Fits(Recurs(), sequences(), use_distributed_sampler=False), "batch_size=..., shuffle=True"
    ),
}  # fmt: skip


def in_plain_order(fits: Fits) -> None:
    """Let it be trained in the order that Lightning's DDP gives it, in a world of one."""

    def ordered(loader: Any) -> Any:
        sampler = DistributedSampler(loader.dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
        return DataLoader(loader.dataset, batch_size=loader.batch_size, sampler=sampler)

    data = fits.data
    if isinstance(data, pl.LightningDataModule):
        theirs = data.train_dataloader
        data.train_dataloader = lambda: ordered(theirs())  # type: ignore[method-assign]
    else:
        fits.data = ordered(data)


def train(folder: Path, make: Callable[[], Fits], *, run: RunOfOne | None = None, kind: str = "", step: int = 4) -> Any:
    """Two epochs; with a `run`, through a rescale in the second one and one at the first one's validation."""
    torch.manual_seed(3)
    fits = make()
    callbacks = list(fits.callbacks)
    if run is None:
        in_plain_order(fits)
    else:
        happens = [Disturbance("on_before_backward", step, kind)]
        fits.module.disturber = Disturber(run, happens)  # type: ignore[assignment]
        callbacks = [ElasticCallback(), *callbacks, fits.module.disturber]  # type: ignore[list-item]
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, num_sanity_val_steps=0, limit_val_batches=2,
        callbacks=callbacks, **{"max_epochs": 2, **fits.trainer},
    )  # fmt: skip
    torch.manual_seed(4)
    if isinstance(fits.data, pl.LightningDataModule):
        trainer.fit(fits.module, datamodule=fits.data)
    else:
        trainer.fit(fits.module, fits.data)
    if run is not None:
        assert run.num_generations() == 2
    return trainer


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """What plain Lightning comes to."""
    return cache(lambda name: train(tmp_path_factory.mktemp("plain"), (HELD | EXAMPLES)[name]))


def compare(one: Any, other: Any) -> None:
    mine, theirs = one.lightning_module.state_dict(), other.lightning_module.state_dict()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    assert repr(one.optimizers[0].state_dict()) == repr(other.optimizers[0].state_dict())
    assert one.global_step == other.global_step > 4
    metrics = [{name: float(value) for name, value in trainer.callback_metrics.items()} for trainer in (one, other)]
    assert metrics[0] == metrics[1]


def test_every_demo_has_its_row() -> None:
    modules = [module.name for module in pkgutil.walk_packages(demos.__path__, f"{demos.__name__}.")]
    found = {
        name
        for module in modules
        for name, kind in vars(importlib.import_module(module)).items()
        if inspect.isclass(kind) and kind.__module__ == module
    }
    assert found == DEMOS.keys()
    parts = {"PositionalEncoding", "RandomDataset", "Transformer"}  # of the others
    assert {name for name, row in DEMOS.items() if row.verdict is Verdict.HELD} - parts == HELD.keys()
    assert {name for name, row in DEMOS.items() if row.verdict is Verdict.REFUSED} == REFUSED.keys()


@pytest.mark.parametrize("kind", ["planned", "told"])
@pytest.mark.parametrize("name", HELD)
def test_demos(tmp_path: Path, run: RunOfOne, plain: Callable[[str], Any], name: str, kind: str) -> None:
    """A stop or a death in mid-run: the same weights and optimizer state as plain Lightning's."""
    steps = 2 if name == "Net" else 4
    compare(train(tmp_path, HELD[name], run=run, kind=kind, step=steps), plain(name))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_demos(tmp_path: Path, run: RunOfOne, name: str) -> None:
    """At the start, with what to write."""
    make, said = REFUSED[name]
    with pytest.raises(SettingsError, match=said):
        train(tmp_path, make, run=run, kind="planned")


# --- the examples of the documentation ----------------------------------------------------------------------------------


class Example(pl.LightningModule):
    """What most of them begin with."""

    disturber: Disturber | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, y = batch
        loss = nn.functional.mse_loss(self.layers(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self.layers(x), y))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.02)

    def val_dataloader(self) -> Any:
        return train_loader(shuffle=False)


class OutputsInAList(Example):
    """Migration guide to 2.0: what `training_epoch_end` was given."""

    def __init__(self) -> None:
        super().__init__()
        self.training_step_outputs: list[torch.Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.training_step_outputs.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_of_list", torch.stack(self.training_step_outputs).mean())
        self.log("length_of_list", float(len(self.training_step_outputs)))
        self.training_step_outputs.clear()


class MetricOfTheModule(Example):
    """torchmetrics in Lightning: the metric itself is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, y = batch
        self.error(self.layers(x), y)
        self.log("error", self.error, on_step=True, on_epoch=True)
        return super().training_step(batch, batch_idx)


class MetricByHand(Example):
    """torchmetrics in Lightning: updated in steps, computed and reset at the end of the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, y = batch
        self.error.update(self.layers(x), y)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("error", self.error.compute())
        self.error.reset()


class WarmsUp(Example):
    """Optimization: the learning rate is raised by hand in `optimizer_step`."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)
        if self.trainer.global_step < 8:
            for group in optimizer.param_groups:
                group["lr"] = min(1.0, (self.trainer.global_step + 1) / 8) * 0.02


class EverySecondStep(Example):
    """Optimization: what the schedulers and their `frequency` are told in a dictionary."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss", "frequency": 1}}


class FrozenExtractor(Example):
    """Transfer learning: a pretrained part that is frozen and in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.extractor = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.extractor.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        index, x, y = batch
        self.extractor.eval()
        with torch.no_grad():
            x = self.extractor(x)
        return super().training_step((index, x, y), batch_idx)


class Saves(Example):
    """Checkpointing: `save_hyperparameters`, and something of one's own in the checkpoint."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.something_cool = 0.0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["something_cool_i_want_to_save"] = self.something_cool

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.something_cool = checkpoint["something_cool_i_want_to_save"]


class Truncated(Example):
    """Truncated backpropagation through time: what one batch leaves to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.zeros(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, y = batch
        output = self.layers(x) + 0.5 * self.hidden
        self.hidden = output.detach()
        return nn.functional.mse_loss(output, y)


class Counter(Callback):
    """Callbacks: one with a state."""

    def __init__(self, what: str = "epochs") -> None:
        self.what = what
        self.state = {"epochs": 0, "batches": 0}

    @property
    def state_key(self) -> str:
        return f"Counter[what={self.what}]"

    def on_train_epoch_end(self, *_: Any) -> None:
        self.state["epochs"] += self.what == "epochs"

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.state["batches"] += self.what == "batches"
        pl_module.log("counted", float(sum(self.state.values())))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state.update(state_dict)

    def state_dict(self) -> dict[str, Any]:
        return self.state.copy()


def example(kind: Callable[[], Example], *callbacks: Callback, **trainer: Any) -> Callable[[], Fits]:
    return lambda: Fits(kind(), train_loader(shuffle=False), *callbacks, **trainer)


EXAMPLES: dict[str, Callable[[], Fits]] = {
    "outputs in a list": example(OutputsInAList),
    "a metric that is logged": example(MetricOfTheModule),
    "a metric computed by hand": example(MetricByHand),
    "warm-up in optimizer_step": example(WarmsUp),
    "a scheduler that watches a metric": example(EverySecondStep),
    "a frozen extractor": example(FrozenExtractor),
    "hyperparameters and more in the checkpoint": example(Saves),
    "truncated backpropagation": example(Truncated),
    "a callback with a state": lambda: Fits(Example(), train_loader(shuffle=False), Counter(), Counter("batches")),
    "gradients that are clipped": example(Example, gradient_clip_val=0.1),
    "gradients that are accumulated": example(Example, accumulate_grad_batches=2, max_epochs=4),
}


def test_every_example_has_its_row() -> None:
    assert EXAMPLES.keys() == PATTERNS.keys()


@pytest.mark.parametrize("kind", ["planned", "told"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(tmp_path: Path, run: RunOfOne, plain: Callable[[str], Any], name: str, kind: str) -> None:
    """A stop or a death in mid-step: weights, optimizer state and logged values are plain Lightning's."""
    compare(train(tmp_path, EXAMPLES[name], run=run, kind=kind, step=8), plain(name))
