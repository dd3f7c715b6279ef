"""Shards, streams and several loaders in a run of one: rescales and resumed checkpoints change nothing."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DataLoader

from dtf_lightning.elastic.observe.ledger import audit
from dtf_lightning.errors import SettingsError
from support.elastic.data_kinds import InShards, InStreams
from support.elastic.run_of_one import (
    BATCH,
    Data,
    Disturbance,
    Net,
    Outcome,
    assert_same_weights,
    fit,
    plain_loader,
    train_loader,
)

DISTURBANCES = [
    Disturbance("training_step", 1),
    Disturbance("on_before_optimizer_step", 3, "told"),
    Disturbance("after_step", 4, "collective"),
    Disturbance("on_train_epoch_end", 12, "told"),
]
NUM_SAMPLES = 23


def smooth() -> Net:
    model = Net(scheduler="step")
    model.layers[1] = torch.nn.Identity()  # a rest of one sample is too few for BatchNorm
    return model


class Pairs(Net):
    """Trains on a batch from each of two loaders; one of them may have nothing more."""

    def __init__(self) -> None:
        super().__init__(scheduler="step")
        self.layers[1] = torch.nn.Identity()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        present = [part for part in batch if part is not None]
        joined = [torch.cat(parts) for parts in zip(*present, strict=True)]
        return super().training_step(joined, batch_idx)


def in_shards(**changed: Any) -> DataLoader:
    return train_loader(dataset=InShards(Data(NUM_SAMPLES), [5, 1, 9, 3, 5]), **changed)


def in_streams(**changed: Any) -> DataLoader:
    data = InStreams(Data(NUM_SAMPLES), share_every=changed.pop("share_every", 2))
    return DataLoader(data, batch_size=BATCH, **changed)


def in_stateful(**changed: Any) -> DataLoader:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    return loaders.StatefulDataLoader(Data(NUM_SAMPLES), batch_size=BATCH, shuffle=True, **changed)


def in_stateful_streams(**changed: Any) -> DataLoader:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")
    return loaders.StatefulDataLoader(InStreams(Data(NUM_SAMPLES)), batch_size=BATCH, **changed)


KINDS: dict[str, Any] = {
    "shards": in_shards,
    "shards_read_ahead": lambda: in_shards(num_workers=2),
    "shards_persistent": lambda: in_shards(num_workers=1, persistent_workers=True),
    "streams": in_streams,
    "streams_read_ahead": lambda: in_streams(num_workers=2, prefetch_factor=3),
    "streams_without_state": lambda: in_streams(share_every=0),
    "stateful": lambda: in_stateful(num_workers=1),
    "stateful_streams": in_stateful_streams,
}


def train(start_run: Any, folder: Path, disturbances: list[Disturbance], **arguments: Any) -> tuple[Outcome, Any]:
    run = start_run()
    folder.mkdir(exist_ok=True)
    arguments = {"model": smooth(), "ledger": True, **arguments}
    return fit(folder, elastic=True, run=run, disturbances=disturbances, **arguments), run


EXACT = {"tail": "exact"}


@pytest.mark.parametrize(
    ("kind", "policy"), [*((kind, {}) for kind in KINDS), ("shards", EXACT), ("streams", EXACT), ("stateful", EXACT)]
)
def test_through_rescales(tmp_path: Path, start_run: Any, kind: str, policy: dict[str, Any]) -> None:
    """A planned rescale, deaths before and after an optimizer step, and one in an epoch's last hooks."""
    make = KINDS[kind]
    whole, _ = train(start_run, tmp_path / "whole", [], loader=make(), **policy)
    disturbed, run = train(start_run, tmp_path / "disturbed", DISTURBANCES, loader=make(), **policy)
    assert run.num_generations() == 5
    if kind != "streams_read_ahead":  # its workers take turns anew: the same samples in other batches
        assert_same_weights(disturbed, whole)
    assert disturbed.trainer.global_step == whole.trainer.global_step == 18
    account = audit((tmp_path / "disturbed" / "dtf").rglob("ledger/*.jsonl"))
    assert [epoch.consumed for epoch in account.epochs.values()] == [Counter(range(NUM_SAMPLES))] * 3
    assert account.steps_lost == 0


def test_shards_that_stay_are_not_loaded_again(tmp_path: Path, start_run: Any) -> None:
    """A survivor keeps what it has: each shard is loaded once in three epochs and five generations."""
    loader = in_shards()
    train(start_run, tmp_path, DISTURBANCES, loader=loader)
    assert sorted(loader.dataset.loaded) == list(range(5))


def test_streams_of_a_limited_epoch(tmp_path: Path, start_run: Any) -> None:
    """Lightning does not read ahead where it knows the number of batches; the rest of the streams is left out."""
    whole, _ = train(start_run, tmp_path / "whole", [], loader=in_streams(), limit_train_batches=4)
    folder = tmp_path / "disturbed"
    disturbed, _ = train(start_run, folder, DISTURBANCES, loader=in_streams(), limit_train_batches=4)
    assert_same_weights(disturbed, whole)
    account = audit((folder / "dtf").rglob("ledger/*.jsonl"))
    assert [epoch.consumed for epoch in account.epochs.values()] == [Counter(range(16))] * 3


def test_streams_of_a_datamodule(tmp_path: Path, start_run: Any) -> None:
    class Module(pl.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return in_streams()

    whole, _ = train(start_run, tmp_path / "whole", [], loader=in_streams(), validate=None)
    disturbed, _ = train(start_run, tmp_path / "disturbed", DISTURBANCES, datamodule=Module())
    assert_same_weights(disturbed, whole)


def test_streams_with_accumulation(tmp_path: Path, start_run: Any) -> None:
    """A death in the second micro-batch of a step takes both back."""
    disturbances = [Disturbance("on_before_optimizer_step", 1, "told")]
    arguments = {"loader": in_streams(), "accumulate_grad_batches": 2}
    whole, _ = train(start_run, tmp_path / "whole", [], **arguments)
    disturbed, _ = train(start_run, tmp_path / "disturbed", disturbances, **arguments)
    assert_same_weights(disturbed, whole)
    account = audit((tmp_path / "disturbed" / "dtf").rglob("ledger/*.jsonl"))
    assert [epoch.consumed for epoch in account.epochs.values()] == [Counter(range(NUM_SAMPLES))] * 3


def test_streams_without_state_are_warned_of(tmp_path: Path, start_run: Any) -> None:
    """No sample is lost, but a rescale reads again: said at the start."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(start_run, tmp_path, [], loader=in_streams(share_every=0), max_epochs=1)
    assert any("read again from the epoch's beginning" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("mode", ["max_size_cycle", "min_size", "max_size"])
def test_several_loaders(tmp_path: Path, start_run: Any, mode: str) -> None:
    """24 samples by 4 beside 10 by 3: the same batches as plain Lightning's, whatever happens in between."""

    def loaders(make: Any) -> CombinedLoader:
        return CombinedLoader([make(), make(dataset=Data(10), batch_size=3)], mode)

    plain = fit(tmp_path, elastic=False, model=Pairs(), loader=loaders(plain_loader))
    place = Disturbance("on_train_epoch_end", plain.trainer.global_step // 3, "told")
    disturbances = [*DISTURBANCES[:2], place, Disturbance("training_step", plain.trainer.global_step - 1, "told")]
    elastic, _ = train(start_run, tmp_path, disturbances, model=Pairs(), loader=loaders(train_loader))
    assert elastic.model.drawn[-1] == plain.model.drawn[-1]
    assert_same_weights(elastic, plain)
    account = audit((tmp_path / "dtf").rglob("ledger/*.jsonl"))
    second = Counter({24 + i: 1 for i in range(10)})
    if mode == "max_size_cycle":
        assert all(epoch.consumed[sample] >= 1 for epoch in account.epochs.values() for sample in range(34))
    elif mode == "max_size":
        assert [epoch.consumed for epoch in account.epochs.values()] == [Counter(range(24)) + second] * 3
    else:
        assert all(epoch.consumed & second == second for epoch in account.epochs.values())
        assert all(max(epoch.consumed.values()) == 1 for epoch in account.epochs.values())


@pytest.mark.parametrize(("kind", "policy"), [("streams", {}), ("shards", EXACT), ("stateful", {})])
def test_one_in_a_combined_loader(tmp_path: Path, start_run: Any, kind: str, policy: dict[str, Any]) -> None:
    """The user's `CombinedLoader` object lives through all generations, with what was put into it."""
    whole, _ = train(start_run, tmp_path / "whole", [], loader=KINDS[kind](), **policy)
    combined = CombinedLoader([KINDS[kind]()], "min_size")
    disturbed, _ = train(start_run, tmp_path / "both", DISTURBANCES, model=Pairs(), loader=combined, **policy)
    assert_same_weights(disturbed, whole)


def test_a_list_of_loaders(tmp_path: Path, start_run: Any) -> None:
    """What Lightning makes a cycle of."""
    both, _ = train(start_run, tmp_path, DISTURBANCES[:1], model=Pairs(), loader=[train_loader(), train_loader()])
    assert both.trainer.global_step == 18


@pytest.mark.parametrize("kind", ["shards", "streams", "several"])
def test_resumed_from_a_checkpoint(tmp_path: Path, start_run: Any, kind: str) -> None:
    """In mid-epoch, in a new process's life: at the exact sample of each shard, stream or loader."""

    def make() -> tuple[Net, Any]:
        if kind != "several":
            return smooth(), KINDS[kind]()
        return Pairs(), [train_loader(), train_loader(dataset=Data(10), batch_size=3)]

    keeper = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    arguments = {"enable_checkpointing": True, "elastic_seed": 1}
    model, loader = make()
    whole, _ = train(start_run, tmp_path, [], model=model, loader=loader, callbacks=[keeper], **arguments)
    model, loader = make()
    path = tmp_path / "step=8.ckpt"
    resumed, _ = train(start_run, tmp_path, [], model=model, loader=loader, ckpt_path=path, **arguments)
    assert_same_weights(resumed, whole)
    assert resumed.trainer.global_step == whole.trainer.global_step


@pytest.mark.parametrize(
    ("saved", "loader", "message"),
    [
        (train_loader, lambda: [train_loader(), train_loader()], "not say where training loader number 2 stands"),
        (train_loader, in_streams, "position in mid-epoch is not one of streams"),
        (train_loader, in_shards, "position in mid-epoch is not one of sharded data"),
        (in_shards, lambda: train_loader(dataset=Data(NUM_SAMPLES)), "mid-epoch is one of shards, the training loader"),
        (
            in_streams,
            lambda: train_loader(dataset=Data(NUM_SAMPLES)),
            "mid-epoch is one of streams, the training loader",
        ),
    ],
)
def test_resumed_from_a_checkpoint_of_other_data(
    tmp_path: Path, start_run: Any, saved: Any, loader: Any, message: str
) -> None:
    """Nothing is repeated or skipped in silence."""
    keeper = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    train(start_run, tmp_path, [], loader=saved(), callbacks=[keeper], enable_checkpointing=True, max_epochs=1)
    with pytest.raises(SettingsError, match=message):
        train(start_run, tmp_path, [], model=Pairs(), loader=loader(), ckpt_path=tmp_path / "step=4.ckpt")


@pytest.mark.parametrize(
    ("loader", "arguments", "message"),
    [
        (lambda: [train_loader(), in_streams()], {}, "several training loaders, and one of them is of iterable data"),
        (lambda: [in_streams(), train_loader()], {}, "several training loaders, and one of them is of iterable data"),
        (lambda: [train_loader(), in_shards()], {}, "several training loaders, and one has data in shards"),
        (lambda: [train_loader(), train_loader()], {"tail": "exact"}, "steps are planned ahead .*ConcatDataset"),
        (lambda: [train_loader(), train_loader()], {"limit_train_batches": 0.5}, "Give a number of batches"),
        (in_streams, {"batch": "global"}, "only batch='per_rank' with tail='exact' is possible; got batch='global'"),
        (
            in_streams,
            {"virtual_ranks": 2},
            "but streams are dealt to the workers that there are, as those of InStreams",
        ),
        (in_shards, {"virtual_ranks": 2}, "but shards are dealt to the workers that there are, as those of InShards"),
        (in_streams, {"tail": "drop"}, "got batch='per_rank', tail='drop'"),
        (lambda: DataLoader(InStreams(Data()), batch_size=None), {}, "InStreams has no batch size"),
    ],
)
def test_refused(tmp_path: Path, start_run: Any, loader: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        train(start_run, tmp_path, [], model=Pairs(), loader=loader(), **arguments)
