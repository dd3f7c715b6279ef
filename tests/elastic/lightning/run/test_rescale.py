"""A rescale of a run of one changes nothing but the time: same losses, weights, hooks, metrics as undisturbed."""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torchmetrics
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim.swa_utils import get_ema_avg_fn

from dtf_lightning.elastic.lightning.host.names import WEIGHT_AVERAGING
from dtf_lightning.elastic.lightning.loops import ElasticFitLoop
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.observe.ledger import audit
from support.elastic.run_of_one import (
    Disturbance,
    Net,
    Outcome,
    RunOfOne,
    assert_same_training,
    assert_same_weights,
    fit,
    plain_loader,
)

PLACES = [
    "on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_backward", "on_after_backward",
    "on_before_optimizer_step", "after_step", "on_train_batch_end", "on_validation_start", "validation_step",
    "on_validation_batch_end", "on_validation_end", "on_train_epoch_end",
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Plain Lightning's outcome by trainer arguments, scheduler and order of the data; each is trained once."""
    known: dict[str, Outcome] = {}

    def get(scheduler: str | None = None, *, shuffle: bool = True, **arguments: Any) -> Outcome:
        key = repr((scheduler, shuffle, sorted(arguments.items())))
        if key not in known:
            folder, loader = tmp_path_factory.mktemp("plain"), plain_loader(shuffle=shuffle)
            known[key] = fit(folder, elastic=False, loader=loader, model=Net(scheduler=scheduler), **arguments)
        return known[key]

    return get


@pytest.mark.parametrize("step", [0, 2, 3, 4, 5, 6, 9, 14])
def test_planned(tmp_path: Path, run: RunOfOne, undisturbed: Any, step: int) -> None:
    """Prepare at every kind of place in an epoch of six steps; the run stops two boundaries later and goes on."""
    plain = undisturbed("step")
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"), disturbances=[Disturbance("training_step", step)]
    )
    assert run.num_generations() == 2
    assert_same_training(elastic, plain)
    assert elastic.trace == plain.trace


def test_a_later_generation_makes_its_loaders_without_reductions(
    tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning's numbers of batches are compared once in a run; the barrier behind the users' hook stays."""
    called: list[str] = []
    in_generation: dict[int, list[str]] = {}
    set_up = ElasticFitLoop.setup_data

    def counted(name: str) -> None:
        collective = getattr(dist, name)
        monkeypatch.setattr(dist, name, lambda *args, **kwargs: (called.append(name), collective(*args, **kwargs))[1])

    def setup_data(loop: Any) -> None:
        called.clear()
        set_up(loop)
        in_generation.setdefault(loop.trainer.strategy.run.world.generation.number, list(called))

    for name in ("barrier", "all_reduce", "all_gather"):
        counted(name)
    monkeypatch.setattr(ElasticFitLoop, "setup_data", setup_data)
    fit(tmp_path, elastic=True, run=run, model=Net(), disturbances=[Disturbance("training_step", 2)])
    assert in_generation[1] == ["barrier", "all_gather", *("barrier", "all_reduce") * 2]
    assert in_generation[2] == ["barrier", "all_gather"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["told", "collective"])
def test_unplanned(tmp_path: Path, run: RunOfOne, undisturbed: Any, place: str, kind: str) -> None:
    """A peer dies at every place of a step, of a validation and of an epoch's end, in mid-run."""
    plain = undisturbed("step")
    step = {"on_train_epoch_start": 6, "on_train_epoch_end": 12}.get(place, 12 if "validation" in place else 8)
    elastic = fit(
        tmp_path,
        elastic=True,
        run=run,
        model=Net(scheduler="step"),
        disturbances=[Disturbance(place, step, kind)],
    )
    assert run.num_generations() == 2
    assert_same_weights(elastic, plain)
    assert elastic.learning_rates() == plain.learning_rates()
    assert elastic.trainer.global_step == plain.trainer.global_step
    assert elastic.metrics() == plain.metrics()


@pytest.mark.parametrize("place", ["after_step", "on_before_optimizer_step", "training_step", "on_train_batch_end"])
@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_unplanned_in_accumulation(tmp_path: Path, run: RunOfOne, undisturbed: Any, place: str, step: int) -> None:
    """Groups of four micro-batches, the second of an epoch incomplete: the whole group is done again, or none of it."""
    arguments = {"accumulate_grad_batches": 4, "max_epochs": 2}
    plain = undisturbed("step", **arguments)
    where = step + 1 if (place, step) == ("on_train_batch_end", 3) else step
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"),
        disturbances=[Disturbance(place, where, "told")], **arguments,
    )  # fmt: skip
    assert run.num_generations() == 2
    assert_same_weights(elastic, plain)
    assert elastic.learning_rates() == plain.learning_rates()
    assert elastic.metrics() == plain.metrics()


@pytest.mark.parametrize("step", [0, 1, 2])
def test_planned_in_accumulation(tmp_path: Path, run: RunOfOne, undisturbed: Any, step: int) -> None:
    """Stops only between groups."""
    arguments = {"accumulate_grad_batches": 4, "max_epochs": 3}
    plain = undisturbed("step", **arguments)
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"),
        disturbances=[Disturbance("training_step", step)], **arguments,
    )  # fmt: skip
    assert run.num_generations() == 2
    assert_same_training(elastic, plain)
    assert elastic.trace == plain.trace


@pytest.mark.parametrize("arguments", [
    {"limit_train_batches": 0.5}, {"limit_train_batches": 5}, {"max_steps": 14, "max_epochs": -1},
    {"val_check_interval": 2}, {"val_check_interval": 4, "check_val_every_n_epoch": None},
    {"reload_dataloaders_every_n_epochs": 1}, {"overfit_batches": 3}, {"gradient_clip_val": 0.1},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("kind", ["planned", "told"])
def test_trainer_arguments(
    tmp_path: Path, run: RunOfOne, undisturbed: Any, arguments: dict[str, Any], kind: str
) -> None:
    """What steers the loops steers them as before after a rescale in mid-epoch."""
    plain = undisturbed("epoch", shuffle="overfit_batches" not in arguments, **arguments)
    step = {"limit_train_batches": 4, "overfit_batches": 4}.get(next(iter(arguments)), 7)
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="epoch"),
        disturbances=[Disturbance("on_train_batch_start", step, kind)], **arguments,
    )  # fmt: skip
    assert run.num_generations() == 2
    assert_same_training(elastic, plain)
    if kind == "planned":
        assert elastic.trace == plain.trace


def test_many_in_a_row(tmp_path: Path, run: RunOfOne, undisturbed: Any) -> None:
    """Planned and unplanned, two of them within one step of training."""
    plain = undisturbed("step")
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"),
        disturbances=[
            Disturbance("training_step", 1),
            Disturbance("training_step", 3, "told"),
            Disturbance("on_after_backward", 3, "collective"),
            Disturbance("on_validation_start", 6, "told"),
            Disturbance("validation_step", 6, "told"),
            Disturbance("on_train_epoch_end", 6, "told"),
            Disturbance("training_step", 8),
            Disturbance("after_step", 16, "collective"),
        ],
    )  # fmt: skip
    assert run.num_generations() == 9
    assert_same_weights(elastic, plain)
    assert elastic.metrics() == plain.metrics()
    assert elastic.trainer.global_step == plain.trainer.global_step


class Measuring(Net):
    """Metrics whose states are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.error = torchmetrics.MeanSquaredError()
        self.values = torchmetrics.CatMetric()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, y = batch
        self.error(self(x), y)
        self.values(y)
        self.log("error", self.error, on_epoch=True)
        self.log("sum", y.sum(), on_epoch=True, on_step=False, reduce_fx="sum")
        self.log("max", y.max(), on_epoch=True, on_step=False, reduce_fx="max")
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("mean_of_values", self.values.compute().mean())
        self.values.reset()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return fit(tmp_path_factory.mktemp("measured"), elastic=False, model=Measuring())


@pytest.mark.parametrize(("place", "step"), [
    ("on_before_backward", 0), ("training_step", 0), ("on_before_backward", 6), ("training_step", 8),
    ("on_train_epoch_end", 6), ("on_train_epoch_end", 18), ("on_train_batch_end", 7), ("on_train_batch_end", 12),
])  # fmt: skip
def test_metrics_count_once(tmp_path: Path, run: RunOfOne, measured: Outcome, place: str, step: int) -> None:
    """torchmetrics and every reduction of `self.log` after a step that was done again."""
    elastic = fit(tmp_path, elastic=True, run=run, model=Measuring(), disturbances=[Disturbance(place, step, "told")])
    assert elastic.metrics() == measured.metrics()
    assert_same_weights(elastic, measured)


def with_callbacks(folder: Path, **arguments: Any) -> Outcome:
    """Of a model that logs, stops early and keeps its best two."""
    callbacks = [
        EarlyStopping("val_loss", mode="max", min_delta=100.0, patience=3),
        ModelCheckpoint(folder, "{epoch}", save_top_k=2, monitor="loss_epoch", save_last=True),
    ]
    logger = CSVLogger(folder, name="", version="log")
    return fit(folder, callbacks=callbacks, logger=logger, enable_checkpointing=True, max_epochs=8, **arguments)


@pytest.fixture(scope="module")
def plain_with_callbacks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """The outcome, and the folder with the log."""
    folder = tmp_path_factory.mktemp("callbacks")
    return with_callbacks(folder, elastic=False), folder


@pytest.mark.parametrize("place", ["on_validation_end", "on_validation_start", "on_train_epoch_end", "training_step"])
@pytest.mark.parametrize("kind", ["planned", "told"])
def test_callbacks_and_loggers(
    tmp_path: Path, run: RunOfOne, plain_with_callbacks: tuple[Outcome, Path], place: str, kind: str
) -> None:
    """`EarlyStopping` stops when it would have, `ModelCheckpoint` keeps what it would have, the CSV has the same rows."""
    plain, plain_folder = plain_with_callbacks
    elastic = with_callbacks(tmp_path, elastic=True, run=run, disturbances=[Disturbance(place, 12, kind)])
    assert run.num_generations() == 2
    assert elastic.trainer.current_epoch == plain.trainer.current_epoch == 4
    assert_same_weights(elastic, plain)
    kept, would = elastic.trainer.checkpoint_callback, plain.trainer.checkpoint_callback
    assert kept.best_model_score == would.best_model_score
    assert Path(kept.best_model_path).stem.removesuffix("-v1") == Path(would.best_model_path).stem
    assert all(Path(path).is_file() for path in [*kept.best_k_models, kept.last_model_path])
    rows = [list(csv.DictReader((folder / "log/metrics.csv").open())) for folder in (plain_folder, tmp_path)]
    assert rows[1] == rows[0]


def test_user_error_is_no_rescale(tmp_path: Path, run: RunOfOne) -> None:
    """An exception of the user's code ends the fit with itself, and the agent is told at once."""

    class Broken(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError, match="in the user's code"):
        fit(tmp_path, elastic=True, model=Broken())
    assert run.wait_to_hear(messages.Dying).error == "ZeroDivisionError: in the user's code"
    assert run.kinds() == ["hello", "ready", "active", "dying"]


def test_ledger(tmp_path: Path, run: RunOfOne) -> None:
    """With the ledger on, an audit sees every sample once in each epoch through all kinds of rescale."""
    disturbances = [
        Disturbance("training_step", 1), Disturbance("on_after_backward", 4, "told"),
        Disturbance("on_train_batch_end", 9, "told"), Disturbance("on_validation_start", 12, "told"),
    ]  # fmt: skip
    fit(tmp_path, elastic=True, run=run, disturbances=disturbances, ledger=True)
    result = audit((tmp_path / "dtf" / "run" / "ledger").glob("*.jsonl"))
    assert [(epoch.missing(24), epoch.repeated()) for epoch in result.epochs.values()] == [([], {})] * 3
    assert result.steps_lost == 0
    assert result.committed_steps == 18


class Swapping(Callback):
    """A user's own average of weights: keeps the real ones aside while the average is validated."""

    def __init__(self) -> None:
        self.average: dict[str, Any] = {}
        self.aside: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        for name, value in pl_module.state_dict().items():
            self.average[name] = (self.average.get(name, value) + value.clone()) / 2

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.aside = {name: value.clone() for name, value in pl_module.state_dict().items()}
        pl_module.load_state_dict(self.average)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.load_state_dict(self.aside)


EMA = [partial(average, avg_fn=get_ema_avg_fn(0.5)) for average in WEIGHT_AVERAGING]
"""Lightning's own; 2.5 has none."""


@pytest.fixture(scope="module")
def plain_with_average(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[], Any]], Outcome]:
    """Plain Lightning's outcome by what averages."""
    return cache(lambda make: fit(tmp_path_factory.mktemp("average"), elastic=False, callbacks=[make()]))


@pytest.mark.parametrize("place", ["validation_step", "on_validation_start", "on_validation_end", "after_step",
                                   "on_train_epoch_end", "on_train_batch_end"])  # fmt: skip
@pytest.mark.parametrize("make", [*EMA, Swapping])
def test_weight_averaging(
    tmp_path: Path, run: RunOfOne, plain_with_average: Any, place: str, make: Callable[[], Any]
) -> None:
    """Averages swap the weights for a validation; one that is interrupted must not train on with the average."""
    if make is Swapping and place == "after_step":
        pytest.skip("a user's batch-end hook is not called for a step that was interrupted after its weights changed")
    plain = plain_with_average(make)
    disturbances = [Disturbance(place, 6, "told"), Disturbance(place, 12, "collective")]
    elastic = fit(tmp_path, elastic=True, callbacks=[make()], run=run, disturbances=disturbances)
    assert run.num_generations() == 3
    assert_same_weights(elastic, plain)
    assert elastic.metrics() == plain.metrics()
