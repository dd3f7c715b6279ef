"""Every hook that a module has is a place where a run is told to rescale, and where a peer dies."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core import hooks as core_hooks

from support.elastic.matrix.table import HOOKS, Verdict
from support.elastic.run_of_one import (
    MODULES_OWN,
    Disturbance,
    Net,
    Outcome,
    RunOfOne,
    assert_same_weights,
    fit,
    plain_loader,
    train_loader,
    val_loader,
)

IN_FIT = sorted(name for name, row in HOOKS.items() if row.verdict is Verdict.HELD)
STEPS = {
    "on_train_start": 0, "on_train_epoch_start": 6, "on_train_epoch_end": 12, "on_save_checkpoint": 12,
    "train_dataloader": 6, "val_dataloader": 12,
}  # fmt: skip


def step_of(hook: str) -> int:
    """The number of steps done when the event comes: in the second epoch of three, or around it."""
    return STEPS.get(hook, 12 if "validation" in hook else 8)


class EveryHook(Net):
    """Overrides all of them: each counts itself, does what its base does, and is a place of the disturber's."""

    loader: Any = None

    def __init__(self) -> None:
        super().__init__(scheduler="step")
        self.counts: dict[str, int] = {}

    def train_dataloader(self) -> Any:
        return self.loader()

    def val_dataloader(self) -> Any:
        return val_loader()


def _overriding(name: str) -> Any:
    base = getattr(EveryHook, name, None)

    def hook(self: EveryHook, *args: Any, **kwargs: Any) -> Any:
        if not self.trainer.sanity_checking:
            self.counts[name] = self.counts.get(name, 0) + 1
        self._happen(name)
        return base(self, *args, **kwargs)

    return hook


EveryHookInFit = type("EveryHookInFit", (EveryHook,), {name: _overriding(name) for name in IN_FIT})


def train(folder: Path, *, elastic: bool, reload: int = 0, **arguments: Any) -> Outcome:
    model = EveryHookInFit()
    model.loader = train_loader if elastic else plain_loader
    return fit(
        folder, elastic=elastic, model=model, loader=MODULES_OWN, enable_checkpointing=True,
        callbacks=[ModelCheckpoint(folder / "every", save_top_k=-1)], gradient_clip_val=10.0,
        reload_dataloaders_every_n_epochs=reload, **arguments,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """By `reload_dataloaders_every_n_epochs`."""
    return cache(lambda reload=0: train(tmp_path_factory.mktemp("plain"), elastic=False, reload=reload))


def through(folder: Path, run: RunOfOne, kind: str, hooks: list[str], plain: Callable[..., Outcome]) -> Outcome:
    """Loaders are made anew in each epoch where the hooks that make them are places."""
    reload = int(any("dataloader" in hook for hook in hooks))
    disturbances = [Disturbance(hook, step_of(hook), kind) for hook in hooks]
    outcome, undisturbed = train(folder, elastic=True, run=run, disturbances=disturbances, reload=reload), plain(reload)
    assert_same_weights(outcome, undisturbed)
    assert outcome.learning_rates() == undisturbed.learning_rates()
    assert outcome.metrics() == undisturbed.metrics()
    assert outcome.trainer.global_step == undisturbed.trainer.global_step
    return outcome


def test_every_hook_has_its_row() -> None:
    """Whatever a new Lightning calls on a module, or gives it to call, is sorted in."""
    homes = (LightningModule, core_hooks.ModelHooks, core_hooks.DataHooks, core_hooks.CheckpointHooks)
    public = {
        name for home in homes for name, value in vars(home).items() if inspect.isfunction(value) and name[0] != "_"
    }
    assert public == HOOKS.keys()


WITHIN = [hook for hook in IN_FIT if hook != "on_load_checkpoint"]  # which runs on a joiner


def test_each_is_called(plain: Callable[..., Outcome]) -> None:
    """By plain Lightning, in this training: none of them is a place that is never come to."""
    assert plain().model.counts.keys() == set(WITHIN)


def rounds(hooks: list[str], number: int) -> list[list[str]]:
    """Deal the hooks out to so many fits: each goes through places of all parts of an epoch."""
    ordered = sorted(hooks, key=step_of)
    return [ordered[first::number] for first in range(number)]


ONCE = [hook for hook in WITHIN if "dataloader" not in hook]


@pytest.mark.parametrize(
    "hooks", [*rounds(ONCE, 4), ["val_dataloader"], ["train_dataloader"]], ids=lambda hooks: hooks[0]
)
def test_a_peer_dies_in_a_hook(tmp_path: Path, run: RunOfOne, plain: Callable[..., Outcome], hooks: list[str]) -> None:
    """In each of these: same weights, learning rates and logged values as if nothing had happened."""
    through(tmp_path, run, "told", hooks, plain)
    assert run.num_generations() == 1 + len(hooks)


def pairs() -> list[list[str]]:
    """One hook of an epoch's midst with one of its end, until all had their turn; two at once would be one stop."""
    alone = [
        hook for hook in WITHIN if step_of(hook) not in (8, 12) or hook == "val_dataloader"
    ]  # a stop makes it anew
    midst, end = ([hook for hook in WITHIN if step_of(hook) == step and hook not in alone] for step in (8, 12))
    return [[hook for hook in hooks if hook] for hooks in zip_longest(midst, end)] + [[hook] for hook in alone]


@pytest.mark.parametrize("hooks", pairs(), ids=lambda hooks: hooks[0])
def test_a_stop_is_announced_in_a_hook(
    tmp_path: Path, run: RunOfOne, plain: Callable[..., Outcome], hooks: list[str]
) -> None:
    """A join or leave: every hook runs as often as if nothing had happened."""
    outcome = through(tmp_path, run, "planned", hooks, plain)
    assert run.num_generations() == 1 + len(hooks)
    assert counted(outcome) == counted(plain())


def counted(outcome: Outcome) -> dict[str, int]:
    """How often hooks ran, but those that make loaders, and the one that also runs where a state is packed for joiners."""
    other = ("train_dataloader", "val_dataloader", "on_save_checkpoint")
    return {name: number for name, number in outcome.model.counts.items() if name not in other}


@pytest.mark.parametrize("hook", ["training_step", "on_validation_end"])
def test_what_hooks_count(tmp_path: Path, run: RunOfOne, plain: Callable[..., Outcome], hook: str) -> None:
    """A dictionary of the module's own, in which each hook counts itself: as often as in an undisturbed run."""
    outcome = through(tmp_path, run, "told", [hook], plain)
    assert counted(outcome) == counted(plain())


class TwoSchedulers(Net):
    """Two schedulers that multiply one learning rate; the place is the second one's update, before it or behind it."""

    behind = False

    def train_dataloader(self) -> Any:
        return train_loader() if self.disturber is not None else plain_loader()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        first, second = (torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma) for gamma in (0.9, 0.97))
        return [optimizer], [{"scheduler": first, "interval": "step"}, {"scheduler": second, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        second = scheduler.gamma == 0.97
        if second and not self.behind:
            self._happen("second")
        super().lr_scheduler_step(scheduler, metric)
        if second and self.behind:
            self._happen("second")


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_each_scheduler_steps_once(tmp_path: Path, run: RunOfOne, behind: bool) -> None:
    """Where an update of several is interrupted, those that have stepped do not step again."""
    outcomes = []
    for elastic in (False, True):
        model = TwoSchedulers()
        model.behind = behind
        arguments: dict[str, Any] = {"run": run, "disturbances": [Disturbance("second", 8, "told")]} if elastic else {}
        outcomes.append(fit(tmp_path / str(elastic), elastic=elastic, model=model, loader=MODULES_OWN, **arguments))
    plain, disturbed = outcomes
    assert run.num_generations() == 2
    assert disturbed.learning_rates() == plain.learning_rates()
    assert_same_weights(disturbed, plain)
