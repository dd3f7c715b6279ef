"""Virtual ranks in a run of one: what eight logical ranks come to, written out by hand, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from dtf_lightning import AdaptiveLearningRate
from dtf_lightning.elastic.data.random_numbers import seed_of, seed_process
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.lightning.callback import ElasticCallback
from dtf_lightning.elastic.lightning.data.virtual_ranks import VirtualRanks
from dtf_lightning.elastic.lightning.rewind.undo import Undo
from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.observe.ledger import audit
from dtf_lightning.errors import SettingsError
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

LOGICAL = 3
SIZE = 32
"""Samples: two whole steps of 12, and one of 8: two logical ranks of 4 and one of none."""


class Noisy(Data):
    """Augmented by torch's and numpy's random numbers."""

    def __getitem__(self, index: int) -> Any:
        index, x, y = super().__getitem__(index)
        return index, x + torch.rand(4) + float(np.random.rand()), y


class Masked(Net):
    """With a constant buffer that is no number when subtracted from itself, and a parameter that nobody uses."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**overrides)
        self.register_buffer("mask", torch.tensor([0.1, -float("inf")]))
        self.unused = torch.nn.Parameter(torch.ones(2))


def virtual(folder: Path, run: RunOfOne, **arguments: Any) -> Outcome:
    arguments.setdefault("loader", train_loader(dataset=Noisy(SIZE)))
    return fit(folder, elastic=True, run=run, virtual_ranks=LOGICAL, max_epochs=2, **arguments)


def by_hand(model: Net, epochs: int = 2, clip: float | None = None) -> Net:
    """The same training in a plain loop."""
    torch.manual_seed(3)
    for layer in model.layers:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    data, sampler = Noisy(SIZE), ElasticDistributedSampler(Noisy(SIZE))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    norm, used = model.layers[1], list(model.layers.parameters())
    statistics = norm.running_mean, norm.running_var
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        order = sampler.order().tolist()
        for step, start in enumerate(range(0, SIZE, LOGICAL * BATCH)):
            taken = order[start : start + LOGICAL * BATCH]
            before = [one.clone() for one in statistics]
            counted = norm.num_batches_tracked.clone()
            gradients, moves = [], []
            for logical in range(LOGICAL):
                part = taken[logical * BATCH : (logical + 1) * BATCH]
                if part:
                    seed_process(seed_of(0, epoch, step, logical, 0))
                    _, x, y = torch.utils.data.default_collate([data[index] for index in part])
                    seed_process(seed_of(0, epoch, step, logical, 1))
                    weight = len(part) / len(taken)
                    loss = torch.nn.functional.mse_loss(model(x), y) * weight
                    gradients.append(torch.autograd.grad(loss, used))
                    moved = [(now - old) * weight for now, old in zip(statistics, before, strict=True)]
                else:
                    gradients.append([torch.zeros_like(one) for one in used])
                    moved = [torch.zeros_like(one) for one in before]
                moves.append(moved)
                torch._foreach_copy_(statistics, before)
            for parameter, (a, b, c) in zip(used, zip(*gradients, strict=True), strict=True):
                parameter.grad = (a + b) + c
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            for buffer, (a, b, c) in zip(statistics, zip(*moves, strict=True), strict=True):
                buffer.add_((a + b) + c)
            norm.num_batches_tracked.copy_(counted + 1)
            optimizer.step()
    return model


@pytest.mark.parametrize("clip", [None, 0.5])
def test_equals_a_loop_by_hand(tmp_path: Path, run: RunOfOne, clip: float | None) -> None:
    """Bitwise: batches, random numbers, order of sums, BatchNorm's statistics, a short last step, clipping."""
    made = virtual(tmp_path, run, model=Masked(), gradient_clip_val=clip)
    expected = by_hand(Masked(), clip=clip).state_dict()
    for name, value in made.state().items():
        assert torch.equal(value, expected[name]), name
    assert made.trainer.global_step == 6
    assert made.model.unused.grad is None
    settings = run.wait_to_hear(messages.Ready).fingerprint
    assert settings["torch threads (OMP_NUM_THREADS)"] == "1", "a node with another number is refused by name"
    assert settings["hardware"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rescales_and_deaths_change_nothing(tmp_path: Path, start_run: Any, num_workers: int) -> None:
    """Planned, told, and a collective that fails, before and after the sums: the same bits, each sample once."""
    disturbances = [
        Disturbance("training_step", 0),
        Disturbance("on_before_optimizer_step", 2, "told"),
        Disturbance("on_after_backward", 3, "collective"),
        Disturbance("after_step", 5, "told"),
    ]
    loader = {"num_workers": num_workers, "persistent_workers": bool(num_workers)}
    whole = virtual(tmp_path, start_run())
    (tmp_path / "disturbed").mkdir()
    run = start_run()
    disturbed = virtual(
        tmp_path / "disturbed", run, loader=train_loader(dataset=Noisy(SIZE), **loader), ledger=True,
        disturbances=disturbances, seed=3,
    )  # fmt: skip
    assert run.num_generations() == 5
    assert_same_weights(disturbed, whole)
    account = audit((tmp_path / "disturbed" / "dtf").rglob("ledger/*.jsonl"))
    assert [(epoch.missing(SIZE), epoch.repeated()) for epoch in account.epochs.values()] == [([], {})] * 2
    assert account.steps_lost == 0


def test_stand_ins_log_nothing(tmp_path: Path, run: RunOfOne) -> None:
    """The third logical rank of the short last step has no sample: the epoch's mean is over what was trained."""

    class Counting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("samples", float(len(batch[0])), on_epoch=True, on_step=False, reduce_fx="sum")
            return super().training_step(batch, batch_idx)

    assert virtual(tmp_path, run, model=Counting()).metrics()["samples"] == SIZE


def test_drop(tmp_path: Path, run: RunOfOne) -> None:
    """`tail="drop"` leaves the short step out."""
    assert virtual(tmp_path, run, tail="drop").trainer.global_step == 4


def test_data_smaller_than_a_step_that_is_dropped(tmp_path: Path, run: RunOfOne) -> None:
    with pytest.raises(SettingsError, match=r"steps of 12 samples; the data set has 8"):
        virtual(tmp_path, run, tail="drop", loader=train_loader(dataset=Data(8)))


class FreezeLater(Callback):
    """As `BackboneFinetuning` does, the other way round."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.layers[0].requires_grad_(trainer.current_epoch == 0)


def test_freezing(tmp_path: Path, run: RunOfOne) -> None:
    """Parameters that are not trained any more stay as they are."""
    weights: list[torch.Tensor] = []

    class Remember(FreezeLater):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            weights.append(pl_module.layers[0].weight.detach().clone())

    virtual(tmp_path, run, callbacks=[Remember()])
    assert torch.equal(weights[0], weights[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"virtual_ranks": 0}, "at least 1"),
        ({"virtual_ranks": 2.0}, "whole number"),
        ({"virtual_ranks": 2, "batch": "global"}, "Remove batch and global_batch"),
        ({"virtual_ranks": 2, "tail": "pad"}, "use tail='exact' or 'drop'"),
    ],
)
def test_contradictions(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ElasticCallback(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 2}, "Leave it at 1 and multiply virtual_ranks by it"),
        ({"sync_batchnorm": True, "strategy": "ddp"}, "SyncBatchNorm"),
        ({"callbacks": [AdaptiveLearningRate("linear")]}, "needs no rule"),
        ({"learning_rate": "linear"}, "needs no rule"),
        ({"strategy": DDPStrategy(ddp_comm_hook=lambda *_: None)}, "adds gradients itself"),
        ({"limit_train_batches": 3}, "limit_train_batches"),
    ],
    ids=["accumulation", "SyncBatchNorm", "callback", "rule", "hook", "limit"],
)
def test_refused_trainers(
    tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    """What would depend on the world again is an error at the start."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(SettingsError, match=message):
        virtual(tmp_path, run, **arguments)


def test_skipped_steps_and_sparse_gradients(tmp_path: Path, start_run: Any) -> None:
    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

    class Sparse(Net):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(SIZE, 4, sparse=True)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.layers(self.embedding(batch[0])).mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with pytest.raises(SettingsError, match="training_step returned None"):
        virtual(tmp_path, start_run(), model=Skipping())
    with pytest.raises(SettingsError, match="dense gradients"):
        virtual(tmp_path, start_run(), model=Sparse())


def test_more_workers_than_logical_ranks_are_refused() -> None:
    """The error says which node it is, and which worlds would do."""
    ranks = VirtualRanks(LOGICAL, seed=None, drop_last=False, undo=Undo())
    ranks.refuse_superfluous(2, 4, "n1")
    with pytest.raises(SettingsError, match=r"node n1 came as rank 3 .* into a world of 4 workers"):
        ranks.refuse_superfluous(3, 4, "n1")
