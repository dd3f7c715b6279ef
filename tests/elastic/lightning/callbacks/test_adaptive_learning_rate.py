"""The learning rate follows a script of world sizes, whatever scheduler is underneath."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.strategies import SingleDeviceStrategy

from dtf_lightning import AdaptiveLearningRate, ElasticCallback
from dtf_lightning.errors import SettingsError
from support.elastic.run_of_one import Data, Disturbance, Net, RunOfOne, assert_same_weights, fit

BASE = 0.01
SCHEDULERS = ["step", "epoch", "plateau", "onecycle", "restarts"]


class ScriptedWorld(SingleDeviceStrategy):
    """Says another world size from certain steps on; trains alone."""

    def __init__(self, worlds: dict[int, int]) -> None:
        super().__init__(device="cpu")
        self.worlds = worlds

    @property
    def world_size(self) -> int:
        step = self.lightning_module.trainer.global_step if self.lightning_module else 0
        return self.worlds[max(begin for begin in self.worlds if begin <= step)]

    @world_size.setter
    def world_size(self, _: int) -> None:
        """The base class sets it."""


class Seen(Callback):
    """Records what each optimizer step really used, and what the scheduler holds after it."""

    def __init__(self) -> None:
        self.used: list[list[float]] = []
        self.betas: list[Any] = []
        self.held: list[list[float]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_pre_hook(self._look)

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self.used.append([group["lr"] for group in optimizer.param_groups])
        self.betas.append(optimizer.param_groups[0].get("betas"))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.held.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])


class Model(pl.LightningModule):
    """Two parameter groups of different learning rates."""

    def __init__(self, scheduler: str = "", optimizer: Any = torch.optim.SGD) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        self.kind, self.optimizer_class = scheduler, optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        _, x, y = batch
        loss = torch.nn.functional.mse_loss(self.two(self.one(x)), y)
        self.log("loss", loss, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.one.parameters()}, {"params": self.two.parameters(), "lr": BASE / 10}]
        optimizer = self.optimizer_class(groups, lr=BASE)
        schedules = torch.optim.lr_scheduler
        match self.kind:
            case "step":
                return [optimizer], [{"scheduler": schedules.StepLR(optimizer, 3), "interval": "step"}]
            case "epoch":
                return [optimizer], [schedules.ExponentialLR(optimizer, 0.5)]
            case "plateau":
                plateau = schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, mode="max")
                return [optimizer], [{"scheduler": plateau, "monitor": "loss"}]
            case "onecycle":
                schedule = schedules.OneCycleLR(optimizer, [0.1, 0.2], total_steps=18)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]
            case "restarts":
                schedule = schedules.CosineAnnealingWarmRestarts(optimizer, 4, 2)
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]
        return optimizer


def train(folder: Path, worlds: dict[int, int], model: Any = None, **arguments: Any) -> tuple[pl.Trainer, Seen]:
    """Six steps per epoch, three epochs."""
    torch.manual_seed(0)
    seen, callbacks = Seen(), arguments.pop("callbacks", [])
    checkpoint = arguments.pop("ckpt_path", None)
    trainer = pl.Trainer(
        strategy=ScriptedWorld(worlds), callbacks=[*callbacks, seen], default_root_dir=folder,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 3, "logger": False, **arguments},
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(Data(), batch_size=4)
    trainer.fit(model or Model(), loader, ckpt_path=checkpoint)
    return trainer, seen


@pytest.mark.parametrize("scheduler", ["", *SCHEDULERS])
def test_4_8_4_returns_exactly(tmp_path: Path, scheduler: str) -> None:
    """Under every scheduler: each step uses the scheduler's own value times the factor, bitwise; its state stays its own."""
    flat = {"plateau": 0.0}.get(scheduler)  # the plateau's metric is the same when nothing is learnt
    worlds = {0: 4, 5: 8, 11: 4}
    arguments: dict[str, Any] = {"gradient_clip_val": 1e-12} if flat is not None else {}
    plain, undisturbed = train(tmp_path, {0: 4}, Model(scheduler), **arguments)
    scaled, seen = train(tmp_path, worlds, Model(scheduler), callbacks=[AdaptiveLearningRate()], **arguments)
    factors = [2.0 if 5 <= step < 11 else 1.0 for step in range(18)]
    assert seen.used == [[lr * f for lr in lrs] for lrs, f in zip(undisturbed.used, factors, strict=True)]
    assert seen.held == undisturbed.held
    if scheduler:
        assert len({tuple(rates) for rates in seen.held}) > 1, "the scheduler did nothing"
        schedules = [trainer.lr_scheduler_configs[0].scheduler.state_dict() for trainer in (plain, scaled)]
        if scheduler != "plateau":  # holds the loss that it saw
            assert repr(schedules[0]) == repr(schedules[1])


@pytest.mark.parametrize(
    ("rule", "worlds", "expected"),
    [
        ("linear", {0: 4, 1: 8, 2: 2, 3: 5, 4: 4}, [0.01, 0.02, 0.005, 0.0125, 0.01]),
        ("sqrt", {0: 4, 1: 16, 2: 1, 3: 4}, [0.01, 0.02, 0.005, 0.01]),
        ("none", {0: 4, 1: 16}, [0.01, 0.01]),
        (lambda world, reference: 1 + world - reference, {0: 4, 1: 6}, [0.01, 0.03]),
    ],
)
def test_rules(tmp_path: Path, rule: Any, worlds: dict[int, int], expected: list[float]) -> None:
    """The first step's world is the reference; the numbers that the rules promise."""
    _, seen = train(tmp_path, worlds, callbacks=[AdaptiveLearningRate(rule)], max_steps=len(expected))
    assert [rates[0] for rates in seen.used] == pytest.approx(expected, rel=1e-14)
    assert [rates[1] for rates in seen.used] == pytest.approx([rate / 10 for rate in expected], rel=1e-14)


def test_reference_world_size(tmp_path: Path) -> None:
    _, seen = train(tmp_path, {0: 2}, callbacks=[AdaptiveLearningRate(reference_world_size=8)], max_steps=1)
    assert seen.used == [[BASE / 4, BASE / 10 / 4]]


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_ramp(tmp_path: Path, ramp: Any) -> None:
    """1 -> 4 over four steps: the first step of the new world has the old rate, the fifth the new one."""
    rate = AdaptiveLearningRate(ramp_steps=4, ramp=ramp)
    _, seen = train(tmp_path, {0: 1, 2: 4}, callbacks=[rate], max_steps=9)
    factors = {"linear": [1, 1, 1, 1.75, 2.5, 3.25, 4, 4, 4], "exponential": [1, 1, 1, 2**0.5, 2, 2**1.5, 4, 4, 4]}
    assert [rates[0] / BASE for rates in seen.used] == pytest.approx(factors[ramp])
    assert rate.factors() == [4.0]


def test_ramp_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Saved in the middle of a ramp and resumed by another process, once in the same and once in another world."""
    rate = AdaptiveLearningRate(ramp_steps=4)
    trainer, seen = train(tmp_path, {0: 1, 2: 4}, callbacks=[rate], max_steps=4)
    path = tmp_path / "middle.ckpt"
    trainer.save_checkpoint(path)
    for worlds, expected in (({0: 4}, [2.5, 3.25, 4]), ({0: 1}, [2.5, 2.125, 1.75])):
        again = AdaptiveLearningRate(ramp_steps=4)
        _, seen = train(tmp_path, worlds, callbacks=[again], max_steps=7, ckpt_path=path)
        assert [rates[0] / BASE for rates in seen.used] == pytest.approx(expected)


def test_adam_sde(tmp_path: Path) -> None:
    _, seen = train(
        tmp_path, {0: 1, 1: 4, 2: 1}, Model(optimizer=torch.optim.AdamW),
        callbacks=[AdaptiveLearningRate("adam_sde")], max_steps=3,
    )  # fmt: skip
    assert [rates[0] for rates in seen.used] == [BASE, 2 * BASE, BASE]
    assert seen.betas[1] == pytest.approx((0.6, 0.996))
    assert seen.betas[0] == seen.betas[2] == (0.9, 0.999)


def test_adam_sde_needs_an_adam(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'adam_sde' scales betas and eps, which SGD does not have"):
        train(tmp_path, {0: 1}, callbacks=[AdaptiveLearningRate("adam_sde")])


class Adversaries(Model):
    """Two optimizers that step at different times, under manual optimization."""

    automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        for index, optimizer in enumerate(self.optimizers()):
            if index == 0 or batch_idx % 2 == 0:
                optimizer.zero_grad()
                self.manual_backward(torch.nn.functional.mse_loss(self.two(self.one(x)), y))
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.one.parameters(), BASE), torch.optim.Adam(self.two.parameters(), BASE)]


def test_several_optimizers(tmp_path: Path) -> None:
    """Each has its own ramp, in its own steps; the second one steps every other time."""
    rate = AdaptiveLearningRate(ramp_steps=2)
    _, seen = train(tmp_path, {0: 1, 3: 3}, Adversaries(), callbacks=[rate], max_epochs=1)
    # steps (first, second) of six batches: (1, 1), (1), (1: the world grows, 1), (2), (3, 2), (3)
    assert [rates[0] / BASE for rates in seen.used] == pytest.approx([1, 1, 1, 1, 1, 2, 3, 2, 3])
    assert [rates[0] for rates in seen.held] == [BASE] * 6


def test_optimizers_are_left_as_they_were(tmp_path: Path) -> None:
    """After `fit` nothing of ours is left on them, and a second `fit` scales once."""
    rate = AdaptiveLearningRate(reference_world_size=1)
    trainer, seen = train(tmp_path, {0: 2}, callbacks=[rate], max_steps=1)
    assert "step" not in trainer.optimizers[0].__dict__
    copy.deepcopy(trainer.optimizers[0])
    assert seen.used[0][0] == 2 * BASE


def test_logs_the_factor(tmp_path: Path) -> None:
    """Beside what `LearningRateMonitor` logs, under the same step."""
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    callbacks = [AdaptiveLearningRate(), LearningRateMonitor("step")]
    train(tmp_path, {0: 1, 2: 3}, Model("step"), callbacks=callbacks, logger=logger, max_steps=4, log_every_n_steps=1)
    text = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = text[0].split(",").index("lr-factor")
    assert [float(line.split(",")[column]) for line in text[1:] if line.split(",")[column]] == [1, 1, 3, 3]


@pytest.mark.parametrize("scheduler", ["step", "epoch", "onecycle"])
def test_elastic_run_of_one_is_untouched(tmp_path: Path, run: RunOfOne, scheduler: str) -> None:
    """Through a planned rescale and a death in mid-step, in the reference world: bitwise plain Lightning."""
    plain = fit(tmp_path, elastic=False, model=Net(scheduler=scheduler))
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler=scheduler), learning_rate="linear",
        disturbances=[Disturbance("training_step", 2), Disturbance("on_before_optimizer_step", 9, "told")],
    )  # fmt: skip
    assert run.num_generations() == 3
    assert_same_weights(elastic, plain)
    assert elastic.learning_rates() == plain.learning_rates()


@pytest.mark.parametrize("place", ["on_before_optimizer_step", "after_step", "on_train_batch_end"])
def test_a_death_around_the_step_keeps_the_rate(tmp_path: Path, run: RunOfOne, place: str) -> None:
    """With a factor of 1/2: what a death in mid-step leaves behind is the scheduler's own value, and the ramp's place."""

    def rate() -> AdaptiveLearningRate:
        return AdaptiveLearningRate(lambda world, reference: 0.5 if world < reference else 1.0, reference_world_size=2)

    plain = fit(tmp_path, elastic=False, model=Net(scheduler="step"), callbacks=[rate()])
    elastic = fit(
        tmp_path, elastic=True, run=run, model=Net(scheduler="step"), learning_rate=rate(),
        disturbances=[Disturbance(place, 8, "told")],
    )  # fmt: skip
    assert run.num_generations() == 2
    assert_same_weights(elastic, plain)
    assert elastic.learning_rates() == plain.learning_rates()


def test_a_step_that_fails_has_not_seen_the_world() -> None:
    """In the middle of a ramp a new world's first step fails, on this rank only: its peers' ramps have not moved either."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), BASE)
    trainer: Any = SimpleNamespace(world_size=1, optimizers=[optimizer], scaler=None)
    rate = AdaptiveLearningRate(ramp_steps=4)
    rate.on_train_start(trainer, model)  # type: ignore[arg-type]
    for trainer.world_size in (1, 2, 2):
        optimizer.step()
    before = copy.deepcopy(rate.state_dict())
    trainer.world_size = 3

    def dies() -> float:
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(RuntimeError):
        optimizer.step(dies)
    assert rate.state_dict() == before
    assert rate.factors() == [1.5]
    assert optimizer.param_groups[0]["lr"] == BASE


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveLearningRate("cubic"), "'cubic' is unknown; choose one of 'linear'"),
        (lambda: AdaptiveLearningRate(ramp_steps=0), "ramp_steps=0.: must be at least 1"),
        (lambda: AdaptiveLearningRate(reference_world_size=0), "reference_world_size=0.: must be at least 1"),
        (
            lambda: AdaptiveLearningRate(ramp="cosine"),
            "ramp='cosine' is unknown; choose one of 'linear', 'exponential'",
        ),
        (lambda: AdaptiveLearningRate("adascale", ramp_steps=5), "moves gradually by itself"),
        (lambda: AdaptiveLearningRate(lambda *_: float("nan")), "returned nan"),
        (lambda: AdaptiveLearningRate(lambda *_: 0), "returned 0"),
        (lambda: ElasticCallback(learning_rate="cubic"), "'cubic' is unknown"),
    ],
)
def test_bad_input(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_scaled_twice_is_refused(tmp_path: Path) -> None:
    callbacks = [ElasticCallback(learning_rate="sqrt"), AdaptiveLearningRate()]
    with pytest.raises(SettingsError, match="scaled twice"):
        train(tmp_path, {0: 1}, callbacks=callbacks)


def test_adascale_in_one_process_measures_over_accumulated_batches(tmp_path: Path) -> None:
    """Four micro-batches a step are enough to estimate from; four times the reference gains between 1 and 4."""
    rate = AdaptiveLearningRate("adascale")
    _, seen = train(tmp_path, {0: 1}, callbacks=[rate], accumulate_grad_batches=3, max_steps=4)
    assert rate._estimate.weight > 0
    assert 1 < rate._estimate.gain(4.0, 3) < 4
    assert [rates[0] for rates in seen.used] == [BASE] * 4
