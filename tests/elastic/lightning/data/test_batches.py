"""Planned steps and orders of the user's own in a run of one: rescales change nothing, whatever is accumulated."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dtf_lightning import WeightedElasticSampler
from dtf_lightning.elastic.observe.ledger import audit
from support.elastic.run_of_one import (
    BATCH,
    Data,
    Disturbance,
    Net,
    Outcome,
    RunOfOne,
    assert_same_weights,
    fit,
    train_loader,
)

DISTURBANCES = [Disturbance("training_step", 1), Disturbance("on_before_optimizer_step", 3, "told")]


def smooth() -> Net:
    model = Net(scheduler="step")
    model.layers[1] = torch.nn.Identity()  # a rest of one sample is too few for BatchNorm
    return model


def test_weighted_order_through_rescales(tmp_path: Path, run: RunOfOne) -> None:
    """The weighted draw of an epoch goes on where it was; a step in flight draws the same samples again."""

    def loader() -> DataLoader:
        data = Data()
        return DataLoader(data, batch_size=BATCH, sampler=WeightedElasticSampler(data, [1.0 + i for i in range(24)]))

    plain = fit(tmp_path, elastic=False, model=smooth(), loader=loader())
    elastic = fit(
        tmp_path,
        elastic=True,
        run=run,
        model=smooth(),
        loader=loader(),
        disturbances=[Disturbance("after_step", 3, "told")],
    )
    assert elastic.model.drawn == plain.model.drawn
    assert_same_weights(elastic, plain)


@pytest.mark.parametrize(
    "policy",
    [{"batch": "global", "global_batch": 7}, {"batch": "global", "global_batch": 12}, {"tail": "exact"}],
    ids=str,
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_planned_steps_through_rescales(
    tmp_path: Path, start_run: Any, policy: dict[str, Any], num_workers: int
) -> None:
    """24 samples and one more: micro-batches and steps differ in size, and a death falls between two of them."""

    def train(folder: Path, disturbances: list[Disturbance]) -> tuple[Outcome, RunOfOne]:
        run = start_run()
        loader = train_loader(dataset=Data(25), num_workers=num_workers, persistent_workers=bool(num_workers))
        outcome = fit(
            folder,
            elastic=True,
            run=run,
            model=smooth(),
            loader=loader,
            ledger=True,
            disturbances=disturbances,
            **policy,
        )
        return outcome, run

    (tmp_path / "undisturbed").mkdir()
    whole, _ = train(tmp_path / "undisturbed", [])
    disturbed, run = train(tmp_path, DISTURBANCES)
    assert run.num_generations() == 3
    assert_same_weights(disturbed, whole)
    assert disturbed.trainer.global_step == whole.trainer.global_step
    account = audit((tmp_path / "dtf").rglob("ledger/*.jsonl"))
    assert [epoch.consumed for epoch in account.epochs.values()] == [Counter(range(25))] * 3
    assert account.steps_lost == 0


class Noisy(Data):
    """Augments each sample with the worker's random numbers of all three kinds."""

    def __getitem__(self, index: int) -> Any:
        index, x, y = super().__getitem__(index)
        return index, x + torch.rand(4) + float(np.random.rand()) + random.random(), y


class Draws(Net):
    """Draws random numbers of all kinds in each step, and remembers them."""

    def __init__(self) -> None:
        super().__init__(scheduler="step")
        self.numbers: dict[int, tuple[float, ...]] = {}
        self.inputs: dict[int, float] = {}

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.numbers[self.trainer.global_step] = (torch.rand(1).item(), float(np.random.rand()), random.random())
        self.inputs[self.trainer.global_step] = batch[1].sum().item()
        return super().training_step(batch, batch_idx)


def test_random_numbers_are_a_function_of_the_place(tmp_path: Path, start_run: Any) -> None:
    """Another seed of the process, a planned rescale, a death: each step draws the same numbers; no two steps do."""

    def train(seed: int, disturbances: list[Disturbance]) -> Draws:
        run = start_run()
        return fit(
            tmp_path, elastic=True, run=run, model=Draws(), elastic_seed=5, seed=seed, disturbances=disturbances
        ).model

    undisturbed, disturbed = train(1, []), train(2, DISTURBANCES)
    assert disturbed.numbers == undisturbed.numbers
    assert len(set(undisturbed.numbers.values())) == 18


def test_loader_workers_draw_by_the_place(tmp_path: Path, start_run: Any) -> None:
    """Up to the rescale the augmentations are those of an undisturbed run; twice the same history, twice the same."""

    def train(disturbances: list[Disturbance]) -> Draws:
        run = start_run()
        loader = train_loader(dataset=Noisy(), num_workers=1)
        return fit(
            tmp_path, elastic=True, run=run, model=Draws(), loader=loader, elastic_seed=5, disturbances=disturbances,
            max_epochs=2,
        ).model  # fmt: skip

    whole, once, twice = train([]), train(DISTURBANCES[:1]), train(DISTURBANCES[:1])
    assert once.inputs == twice.inputs
    same = [step for step in whole.inputs if whole.inputs[step] == once.inputs[step]]
    assert same == [0, 1, 2, 6, 7, 8, 9, 10, 11], "until the rescale, and from the next epoch on"
