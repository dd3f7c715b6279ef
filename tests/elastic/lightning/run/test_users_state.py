"""What a module and callbacks gather by hand counts once, wherever a rescale interrupts a step, a validation or a hook."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

from support.elastic.run_of_one import (
    BATCH,
    NUM_SAMPLES,
    Data,
    Disturbance,
    Net,
    Outcome,
    RunOfOne,
    assert_same_weights,
    fit,
)

NUM_VALIDATED = 64


class Saver(ModelCheckpoint):
    """A peer dies while rank 0 saves: the others wait for it here, behind the module's own hooks."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        pl_module._happen("save")


class Gathers(Net):
    """The recipe of Lightning's documentation: outputs of the steps, gathered by hand for an epoch's end."""

    def __init__(self, ran: list[int]) -> None:
        super().__init__()
        self.outs: list[torch.Tensor] = []
        self.error = torchmetrics.MeanMetric()
        self._ran = ran.append  # a method: what it appends to is nobody's attribute

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.outs.append(loss.detach())
        self.error.update(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        self._ran(self.trainer.global_step)
        self.log("mean", torch.stack(self.outs).mean())
        self.log("of_metric", self.error.compute())
        self.outs.clear()
        self.error.reset()


@pytest.mark.parametrize("kind", ["told", "collective"])
def test_killed_while_rank_zero_saves(tmp_path: Path, run: RunOfOne, kind: str) -> None:
    """The module's hook has cleared its list and reset its metric: it does not run again, and its values stay."""
    ran: dict[str, list[int]] = {"plain": [], "elastic": []}

    def outcome(name: str, **arguments: Any) -> Outcome:
        saver = Saver(tmp_path / name, save_top_k=-1, monitor="mean")
        return fit(tmp_path, model=Gathers(ran[name]), callbacks=[saver], enable_checkpointing=True, **arguments)

    plain = outcome("plain", elastic=False)
    elastic = outcome("elastic", elastic=True, run=run, disturbances=[Disturbance("save", 12, kind)])
    assert run.num_generations() == 2
    assert ran["elastic"] == ran["plain"] == [6, 12, 18]
    assert elastic.metrics() == plain.metrics()
    assert_same_weights(elastic, plain)


def test_killed_between_two_savers(tmp_path: Path, run: RunOfOne) -> None:
    """The first has saved, and saves again with the second: it knows of its file."""

    class SavesNow(Saver):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module._happen("save")
            super().on_train_epoch_end(trainer, pl_module)

    savers = [
        ModelCheckpoint(tmp_path / "first", "{epoch}", monitor="mean"),
        SavesNow(tmp_path / "second", "{epoch}", monitor="mean"),
    ]
    fit(
        tmp_path, elastic=True, run=run, model=Gathers([]), callbacks=savers, enable_checkpointing=True, max_epochs=1,
        disturbances=[Disturbance("save", 6, "told")],
    )  # fmt: skip
    assert run.num_generations() == 2
    for saver in savers:
        assert [Path(path).stem.removesuffix("-v1") for path in saver.best_k_models] == ["epoch=0"]
        assert Path(saver.best_model_path).is_file()


class Counts:
    """Attributes of many kinds, all of which count the same thing."""

    def __init__(self) -> None:
        self.num = 0
        self.samples: list[int] = []
        self.by_kind: defaultdict[str, list[int]] = defaultdict(list)
        self.times: Counter[int] = Counter()
        self.unique: set[int] = set()
        self.total = torch.zeros(1)
        self.nested = {"sums": {"all": [torch.zeros(1)]}}
        self.meter = Meter()
        self.metric = torchmetrics.SumMetric()
        self.metrics = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
        self.generator = torch.Generator().manual_seed(3)
        self.drawn = 0.0
        self.kept: Any = None

    def count(self, index: torch.Tensor) -> None:
        self.num += len(index)
        self.samples += index.tolist()
        self.by_kind["all"].extend(index.tolist())
        self.times.update(index.tolist())
        self.unique.update(index.tolist())
        self.total += len(index)
        self.nested["sums"]["all"][0] += len(index)
        self.meter.update(len(index))
        self.metric.update(len(index))
        self.metrics.update(index.float())
        self.drawn += torch.rand(1, generator=self.generator).item()
        self.kept = index
        self.newest = index[-1].item()

    def counted(self) -> list[Any]:
        return [
            self.num, len(self.samples), len(self.by_kind["all"]), sum(self.times.values()), self.total.item(),
            self.nested["sums"]["all"][0].item(), self.meter.total, self.metric.compute().item(),
        ]  # fmt: skip

    def others(self) -> list[Any]:
        return [self.unique, self.metrics.compute(), self.drawn, self.kept.tolist(), self.newest]


class Meter:
    """The meter that everybody has in a file of their own."""

    def __init__(self) -> None:
        self.total = 0

    def update(self, num: int) -> None:
        self.total += num


class CountsTraining(Counts, Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.count(batch[0])


class CountsValidation(Counts, Callback):
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
        self.count(batch[0])


class ByHand(Net):
    """Counts its samples in its own attributes, and logs how many they were."""

    def __init__(self) -> None:
        super().__init__()
        self.training_counts = Counts()
        self.seen: list[int] = []
        self.held = torchmetrics.SumMetric()
        self.register_buffer("num_validated", torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.training_counts.count(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen += batch[0].tolist()
        self.held.update(len(batch[0]))
        self.num_validated += len(batch[0])
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.log("num_seen", float(len(self.seen)))
        self.log("num_held", self.held.compute())
        self.seen.clear()
        self.held.reset()


@pytest.mark.parametrize(
    "place", ["on_train_batch_start", "training_step", "on_before_backward", "on_before_optimizer_step"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_undone_step(tmp_path: Path, start_run: Callable[..., RunOfOne], place: str, accumulate: int) -> None:
    """24 samples, not 28, wherever the step is interrupted: in the module and in a callback."""

    def outcome(**arguments: Any) -> tuple[Counts, Counts]:
        counts = CountsTraining()
        done = fit(tmp_path, model=ByHand(), callbacks=[counts], max_epochs=1,
                   accumulate_grad_batches=accumulate, **arguments)  # fmt: skip
        return counts, done.model.training_counts  # type: ignore[return-value]

    plain = outcome(elastic=False)
    elastic = outcome(elastic=True, run=start_run(), disturbances=[Disturbance(place, 2, "told")])
    for mine, theirs in zip(elastic, plain, strict=True):
        assert mine.counted() == theirs.counted() == [NUM_SAMPLES] * 8
        assert mine.others() == theirs.others()


@pytest.mark.parametrize("place", ["validation_step", "on_validation_epoch_end", "on_validation_end"])
def test_an_interrupted_validation(tmp_path: Path, run: RunOfOne, place: str) -> None:
    """64 samples, not 96: in a list, in a metric and in a buffer of the module, and in whatever a callback has."""

    def outcome(**arguments: Any) -> tuple[Outcome, Counts]:
        counts = CountsValidation()
        validation = DataLoader(Data(NUM_VALIDATED), batch_size=BATCH)
        return fit(tmp_path, model=ByHand(), callbacks=[counts], validate=validation, max_epochs=1, **arguments), counts

    plain, theirs = outcome(elastic=False)
    elastic, mine = outcome(elastic=True, run=run, disturbances=[Disturbance(place, 6, "told")])
    assert run.num_generations() == 2
    assert elastic.metrics() == plain.metrics()
    assert elastic.metrics()["num_seen"] == elastic.metrics()["num_held"] == NUM_VALIDATED
    assert elastic.model.num_validated.item() == NUM_VALIDATED  # type: ignore[operator]
    assert len(elastic.model.validated) == NUM_VALIDATED
    assert mine.counted() == theirs.counted() == [NUM_VALIDATED] * 8
    assert mine.others() == theirs.others()


class InMidValidation(Callback):
    """A rescale in the middle of a validation, not in its first batch."""

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 7:
            pl_module._happen("eighth")


def test_half_of_a_validation(tmp_path: Path, run: RunOfOne) -> None:
    """Eight of sixteen batches are validated twice: 64 samples, not 96."""
    validation = DataLoader(Data(NUM_VALIDATED), batch_size=BATCH)
    elastic = fit(
        tmp_path, elastic=True, run=run, model=ByHand(), callbacks=[InMidValidation()], validate=validation,
        disturbances=[Disturbance("eighth", 6, "told")], max_epochs=1,
    )  # fmt: skip
    assert run.num_generations() == 2
    assert elastic.metrics()["num_seen"] == elastic.metrics()["num_held"] == NUM_VALIDATED


class Halves(Callback):
    """Counts epochs, and halves the learning rate, in hooks behind which a rescale comes."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun += 1

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.ended += 1
        trainer.optimizers[0].param_groups[0]["lr"] /= 2


@pytest.mark.parametrize(("place", "step"), [("on_train_epoch_start", 6), ("on_train_epoch_end", 12)])
def test_hooks_that_run_again(tmp_path: Path, run: RunOfOne, place: str, step: int) -> None:
    """The callback's hook runs twice for one epoch, and finds its numbers and the learning rate as they were."""
    plain, elastic = Halves(), Halves()
    one = fit(tmp_path, elastic=False, callbacks=[plain])
    other = fit(tmp_path, elastic=True, callbacks=[elastic], run=run, disturbances=[Disturbance(place, step, "told")])
    assert run.num_generations() == 2
    assert (elastic.begun, elastic.ended) == (plain.begun, plain.ended) == (3, 3)
    assert other.learning_rates() == one.learning_rates() == [0.05 / 8]
    assert_same_weights(other, one)


class Reads(Net):
    """Reads from an iterator of its own, which nobody can turn back."""

    def __init__(self) -> None:
        super().__init__()
        self.extra: Iterator[int] = iter(range(1000))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        next(self.extra)
        return super().training_step(batch, batch_idx)


def test_what_cannot_be_put_back_is_named_once(tmp_path: Path, run: RunOfOne) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        disturbances = [Disturbance("training_step", 3, "told"), Disturbance("training_step", 4, "told")]
        fit(tmp_path, elastic=True, run=run, model=Reads(), disturbances=disturbances)
    named = [str(one.message) for one in caught if "Reads.extra (range_iterator)" in str(one.message)]
    assert run.num_generations() == 3
    assert len(named) == 1
