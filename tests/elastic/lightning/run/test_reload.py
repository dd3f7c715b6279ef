"""`reload_dataloaders_every_n_epochs`: rescales change neither the epochs that begin with new loaders nor random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from support.elastic.run_of_one import (
    MODULES_OWN,
    Disturbance,
    Net,
    Outcome,
    RunOfOne,
    assert_same_training,
    fit,
    plain_loader,
    train_loader,
)


class DrawsItself(Net):
    """Draws numbers where its loader is made and where its epoch begins, and is disturbed there after it has drawn."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader
        self.epochs_made: list[int] = []
        self.numbers: list[float] = []

    def train_dataloader(self) -> Any:
        self.epochs_made.append(self.trainer.current_epoch)
        torch.rand(1)
        self._happen("train_dataloader")
        return self.loader()

    def on_train_epoch_start(self) -> None:
        self.numbers.append(torch.rand(1).item())
        self._happen("on_train_epoch_start")


def train(folder: Path, *, elastic: bool, **arguments: Any) -> Outcome:
    model = DrawsItself(train_loader if elastic else plain_loader)
    return fit(folder, elastic=elastic, model=model, loader=MODULES_OWN, validate=None, **arguments)


# An epoch has 6 steps.
FAULTS = {
    "the loader of an epoch": [Disturbance("train_dataloader", 6, "told")],
    "its first hook": [Disturbance("on_train_epoch_start", 6, "told")],
    "both, and again": [
        Disturbance("train_dataloader", 6, "told"), Disturbance("on_train_epoch_start", 6, "told"),
        Disturbance("train_dataloader", 6, "told"), Disturbance("training_step", 6, "told"),
    ],
    "the run's first hook": [Disturbance("on_train_epoch_start", 0, "told")],
    "steps": [Disturbance("training_step", 8, "told"), Disturbance("training_step", 13)],
    "an epoch's end": [Disturbance("on_train_epoch_end", 12, "told")],
}  # fmt: skip


CASES = [("its first hook", 0), ("the run's first hook", 0), *((place, 1) for place in FAULTS)] + [
    (place, 2) for place in ("both, and again", "steps", "an epoch's end")
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Outcome]:
    """By the number of epochs between new loaders."""
    return cache(lambda every: train(tmp_path_factory.mktemp("plain"), elastic=False, **epochs(every)))


def epochs(every: int) -> dict[str, Any]:
    return {"max_epochs": 2 + every, "reload_dataloaders_every_n_epochs": every}


@pytest.mark.parametrize(("place", "every"), CASES)
def test_random_numbers_go_on_as_undisturbed(
    tmp_path: Path, run: RunOfOne, plain: Callable[[int], Outcome], place: str, every: int
) -> None:
    """Those of dropout, of the module's own hooks, and of loaders that are made anew in some epochs."""
    faults = FAULTS[place]
    if every == 2:  # the second epoch begins with the loader of the first, the third with its own
        faults = [replace(fault, step=12) if fault.step == 6 else fault for fault in faults]
    undisturbed = plain(every)
    elastic = train(tmp_path, elastic=True, run=run, disturbances=faults, **epochs(every))
    assert run.num_generations() == 1 + len(faults)
    assert_same_training(elastic, undisturbed)
    assert elastic.model.numbers == undisturbed.model.numbers
    assert set(elastic.model.epochs_made) >= set(undisturbed.model.epochs_made)
