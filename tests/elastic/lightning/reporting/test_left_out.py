"""What an epoch leaves out on purpose is not missing to `dtf audit`; what is gone without a reason is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from dtf_lightning import WeightedElasticSampler
from dtf_lightning.__main__ import main
from support.elastic.data_kinds import InShards, InStreams
from support.elastic.run_of_one import BATCH, Data, Disturbance, Net, RunOfOne, fit, train_loader


class Stops(Callback):
    """As EarlyStopping does, in mid-epoch."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 8


class SkipsTheRest(Net):
    """Lightning's way to end an epoch: what a hook says before a batch, whose samples are drawn by then."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class OfTwo(Net):
    """Trains on the first of two batches."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch[0], batch_idx)


def audited(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """The exit code of `dtf audit`, and what it says of each epoch behind the number of samples."""
    code = main(["audit", str(folder / "dtf" / "run")])
    said = capsys.readouterr().out
    return code, re.findall(r"^epoch \d: (.* missing.*), 0 repeated", said, re.MULTILINE)


TWO_OF_SIX = "8 of 24 samples consumed, 0 missing, 16 left out on purpose"
WHOLE = "24 of 24 samples consumed, 0 missing"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"fast_dev_run": True}, ["4 of 24 samples consumed, 0 missing, 20 left out on purpose (fast_dev_run=True)"]),
        ({"fast_dev_run": 2}, [f"{TWO_OF_SIX} (fast_dev_run=2)"]),
        ({"limit_train_batches": 2}, [f"{TWO_OF_SIX} (limit_train_batches=2)"] * 3),
        ({"limit_train_batches": 0.34}, [f"{TWO_OF_SIX} (limit_train_batches=0.34)"] * 3),
        ({"limit_train_batches": 100}, [WHOLE] * 3),
        ({"overfit_batches": 2}, [f"{TWO_OF_SIX} (overfit_batches=2)"] * 3),
        ({"max_steps": 8}, [WHOLE, f"{TWO_OF_SIX} (max_steps=8)"]),
        ({"accumulate_grad_batches": 2, "max_steps": 4}, [WHOLE, f"{TWO_OF_SIX} (max_steps=4)"]),
        ({"tail": "exact", "max_steps": 2}, [f"{TWO_OF_SIX} (max_steps=2)"]),
        ({"virtual_ranks": 2, "elastic_seed": 5, "max_steps": 1}, [f"{TWO_OF_SIX} (max_steps=1)"]),
        ({"callbacks": [Stops()]}, [WHOLE, f"{TWO_OF_SIX} (trainer.should_stop was set)"]),
        (
            {"model": SkipsTheRest(), "max_epochs": 1},
            ["12 of 24 samples consumed, 0 missing, 12 left out on purpose (on_train_batch_start returned -1)"],
        ),
        (
            {"loader": train_loader(batch_size=5, drop_last=True)},
            ["20 of 24 samples consumed, 0 missing, 4 left out on purpose (the rest that does not fill a batch)"] * 3,
        ),
        (
            {"loader": train_loader(batch_size=5), "batch": "global", "global_batch": 5, "tail": "drop"},
            ["20 of 24 samples consumed, 0 missing, 4 left out on purpose (the rest that does not fill a batch)"] * 3,
        ),
    ],
    ids=lambda value: (
        "-".join(f"{name}={part}" for name, part in value.items())[:40] if isinstance(value, dict) else ""
    ),
)
def test_on_purpose(
    tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], expected: list[str]
) -> None:
    """Every setting and hook that leaves samples out: exit code 0, and why."""
    fit(tmp_path, elastic=True, ledger=True, **arguments)
    assert audited(tmp_path, capsys) == (0, expected)


@pytest.mark.parametrize("kind", ["planned", "told"])
@pytest.mark.parametrize("place", ["training_step", "validation_step", "on_train_epoch_end"])
def test_through_rescales(
    tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str], kind: str, place: str
) -> None:
    """A limit of three batches, and a rescale in the first epoch or at its end."""
    step = 1 if place == "training_step" else 3
    disturbances = [Disturbance(place, step, kind)]
    fit(tmp_path, elastic=True, ledger=True, run=run, disturbances=disturbances, limit_train_batches=3)
    reason = "(limit_train_batches=3)"
    expected = [f"12 of 24 samples consumed, 0 missing, 12 left out on purpose {reason}"] * 3
    assert audited(tmp_path, capsys) == (0, expected)


def test_an_order_that_leaves_samples_out(tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights of 0, and fewer draws than samples."""
    weights = torch.tensor([0.0, 1.0, 1.0] * 8)
    sampler = WeightedElasticSampler(Data(), weights, num_samples=12, replacement=False)
    loader = DataLoader(Data(), batch_size=BATCH, sampler=sampler)
    fit(tmp_path, elastic=True, ledger=True, loader=loader)
    reason = "(WeightedElasticSampler leaves them out)"
    expected = [f"12 of 24 samples consumed, 0 missing, 12 left out on purpose {reason}"] * 3
    assert audited(tmp_path, capsys) == (0, expected)


def test_several_loaders(tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str]) -> None:
    """The shortest ends the epoch: 12 of each are drawn."""
    loaders = CombinedLoader([train_loader(), train_loader(dataset=Data(12))], "min_size")
    fit(tmp_path, elastic=True, ledger=True, model=OfTwo(), loader=loaders)
    reason = "(CombinedLoader(mode='min_size'))"
    expected = [f"24 of 36 samples consumed, 0 missing, 12 left out on purpose {reason}"] * 3
    assert audited(tmp_path, capsys) == (0, expected)


def test_shards(tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str]) -> None:
    loader = train_loader(dataset=InShards(Data(), [5, 1, 9, 4, 5]))
    fit(tmp_path, elastic=True, ledger=True, loader=loader, limit_train_batches=2)
    assert audited(tmp_path, capsys) == (0, [f"{TWO_OF_SIX} (limit_train_batches=2)"] * 3)


def test_streams(tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody knows how many samples streams have: the second epoch is compared with the first, which was whole."""
    loader = DataLoader(InStreams(Data()), batch_size=BATCH)
    fit(tmp_path, elastic=True, ledger=True, loader=loader, max_steps=8)
    assert audited(tmp_path, capsys) == (0, [WHOLE, f"{TWO_OF_SIX} (max_steps=8)"])


def test_what_is_lost_is_missing(tmp_path: Path, run: RunOfOne, capsys: pytest.CaptureFixture[str]) -> None:
    """A loader that ends too early, with a limit in force that it has not come to."""

    class Short(WeightedElasticSampler):
        def __iter__(self) -> Any:
            yield from list(super().__iter__())[:8]

    sampler = Short(Data(), torch.ones(24), replacement=False)
    loader = DataLoader(Data(), batch_size=BATCH, sampler=sampler)
    fit(tmp_path, elastic=True, ledger=True, loader=loader, max_epochs=1, limit_train_batches=5)
    assert audited(tmp_path, capsys) == (1, ["8 of 24 samples consumed, 16 missing"])
