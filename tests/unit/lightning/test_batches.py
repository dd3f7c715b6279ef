"""Planned steps and orders of the user's own in a run of one: rescales change nothing, whatever is accumulated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from dtf_lightning import WeightedElasticSampler
from dtf_lightning.training.ledger import audit
from support.run_of_one import (
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
