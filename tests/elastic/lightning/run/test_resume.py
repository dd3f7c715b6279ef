"""Checkpoints: an elastic run's resumes at the exact sample, and either side can load the other's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from dtf_lightning.__main__ import main
from support.elastic.run_of_one import (
    Net,
    Outcome,
    assert_same_training,
    assert_same_weights,
    fit,
    plain_loader,
    train_loader,
)

if TYPE_CHECKING:
    import lightning.pytorch as pl

STEPS_PER_EPOCH = 6


class SaveAt(Callback):
    """Saves once, in a hook, at a step; the random state beside it, which Lightning's checkpoints leave out."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.step, self.path = step, path
        setattr(self, hook, self._save)

    def _save(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
            self.random_state = torch.get_rng_state()


class Killed(Exception):
    """Stands for kill -9."""


def test_killed_and_resumed_under_its_id_in_its_folder(
    tmp_path: Path, start_run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The documented way to go on when all nodes have died: `dtf audit` reads both lives as one."""

    class Dies(Net):
        def on_before_backward(self, *_: Any) -> None:
            if self.trainer.global_step == 9:
                raise Killed

    start_run()
    with pytest.raises(Killed):
        fit(
            tmp_path,
            elastic=True,
            model=Dies(),
            callbacks=[SaveAt("on_train_batch_end", 7, tmp_path / "c")],
            ledger=True,
        )
    start_run()
    fit(tmp_path, elastic=True, ckpt_path=tmp_path / "c", ledger=True)
    assert main(["audit", str(tmp_path / "dtf" / "run")]) == 0
    said = capsys.readouterr().out
    assert "2 generations of 2 instances, 18 optimizer steps committed, 3 draws rolled back" in said
    assert said.count("24 of 24 samples consumed, 0 missing, 0 repeated") == 3


class WithoutChance(Net):
    """No dropout: what is left of chance is the sample order."""

    def __init__(self, **overrides: Any) -> None:
        super().__init__(**overrides)
        self.layers[2] = torch.nn.Identity()


PLACES = [
    ("on_train_batch_end", 3),
    ("on_train_batch_end", 6),
    ("on_train_batch_end", 9),
    ("on_train_batch_start", 8),
    ("on_validation_start", 6),
    ("on_validation_end", 6),
    ("on_validation_end", 9),
    ("on_train_epoch_end", 12),
    ("on_train_epoch_start", 12),
    ("on_train_end", 18),
]


@pytest.mark.parametrize(("hook", "step"), PLACES)
def test_elastic_resumes_elastic(tmp_path: Path, start_run: Callable[..., Any], hook: str, step: int) -> None:
    """Saved in a hook by one run, loaded by the next: the rest of the samples, then the same weights."""
    path = tmp_path / "saved.ckpt"
    arguments: dict[str, Any] = {"val_check_interval": 0.5}
    save = SaveAt(hook, step, path)
    start_run()
    whole = fit(tmp_path, elastic=True, model=WithoutChance(scheduler="step"), callbacks=[save], **arguments)
    start_run()
    rest = fit(tmp_path, elastic=True, model=WithoutChance(scheduler="step"), ckpt_path=path, **arguments)
    assert rest.model.drawn == whole.model.drawn[step:]
    assert rest.model.losses == whole.model.losses[step:]
    assert_same_weights(rest, whole)
    assert rest.learning_rates() == whole.learning_rates()
    assert rest.trainer.global_step == 18
    assert rest.trainer.current_epoch == 3


def test_accumulation_rolls_back_to_its_step(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """Saved between two micro-batches: the gradient so far is in no checkpoint, so the accumulation begins anew."""
    path = tmp_path / "saved.ckpt"

    class SaveMidway(SaveAt):
        def _save(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
            if trainer.fit_loop.total_batch_idx == 4:  # the fifth batch, of which 2 and 2 make a step
                super()._save(trainer)

    arguments: dict[str, Any] = {"accumulate_grad_batches": 2, "max_epochs": 2}
    model = WithoutChance()
    model.layers[1] = torch.nn.Identity()
    start_run()
    whole = fit(tmp_path, elastic=True, model=model, callbacks=[SaveMidway("on_train_batch_end", 2, path)], **arguments)
    model = WithoutChance()
    model.layers[1] = torch.nn.Identity()
    start_run()
    rest = fit(tmp_path, elastic=True, model=model, ckpt_path=path, **arguments)
    assert rest.model.drawn == whole.model.drawn[4:]
    assert_same_weights(rest, whole)


@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_epoch_end"])
def test_callbacks_count_once(tmp_path: Path, start_run: Callable[..., Any], hook: str) -> None:
    """`EarlyStopping` had counted when `ModelCheckpoint` saved: after the resume its patience ends where it would have."""

    def callbacks() -> list[Callback]:
        at_epoch_end = hook == "on_train_epoch_end"
        return [
            EarlyStopping("val_loss", mode="max", min_delta=100.0, patience=3, check_on_train_epoch_end=at_epoch_end),
            ModelCheckpoint(
                tmp_path, "{epoch}", save_top_k=-1, monitor="val_loss", save_on_train_epoch_end=at_epoch_end
            ),
        ]

    arguments: dict[str, Any] = {"max_epochs": 9, "enable_checkpointing": True}
    start_run()
    whole = fit(tmp_path, elastic=True, model=WithoutChance(), callbacks=callbacks(), **arguments)
    assert whole.trainer.current_epoch == 4
    start_run()
    rest = fit(tmp_path, elastic=True, model=WithoutChance(), callbacks=callbacks(), ckpt_path=tmp_path / "epoch=1.ckpt",
               **arguments)  # fmt: skip
    assert rest.trainer.current_epoch == 4
    assert rest.model.losses == whole.model.losses[12:]


def saved_by(folder: Path, *, elastic: bool, step: int) -> tuple[Path, Outcome]:
    path = folder / "saved.ckpt"
    saver = SaveAt("on_train_epoch_end", step, path)
    return path, fit(folder, elastic=elastic, model=WithoutChance(), callbacks=[saver])


def test_plain_checkpoint_in_elastic_run(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """Saved at an epoch's end by Lightning alone: the elastic run goes on with the next epoch."""
    path, whole = saved_by(tmp_path, elastic=False, step=6)
    start_run()
    rest = fit(tmp_path, elastic=True, model=WithoutChance(), ckpt_path=path)
    assert rest.model.losses == whole.model.losses[6:]
    assert_same_weights(rest, whole)


def test_elastic_checkpoint_without_callback(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """Lightning alone goes on with an elastic run's checkpoint."""
    start_run()
    path, whole = saved_by(tmp_path, elastic=True, step=6)
    rest = fit(tmp_path, elastic=False, model=WithoutChance(), ckpt_path=path)
    assert rest.model.losses == whole.model.losses[6:]
    assert_same_weights(rest, whole)


def test_elastic_checkpoint_with_inert_callback(
    tmp_path: Path, start_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same script without torchrun: the callback's state is passed over."""
    start_run()
    path, whole = saved_by(tmp_path, elastic=True, step=6)
    start_run()
    monkeypatch.delenv("DTF_AGENT_SOCKET")
    loader = plain_loader()
    rest = fit(tmp_path, elastic=True, model=WithoutChance(), ckpt_path=path, loader=loader)
    assert rest.model.losses == whole.model.losses[6:]
    assert_same_weights(rest, whole)
    assert train_loader().batch_size == loader.batch_size
    assert rest.trainer.global_step == STEPS_PER_EPOCH * 3


KINDS = {
    "in mid-epoch": {"every_n_train_steps": 3},
    "in mid-accumulation": {"every_n_train_steps": 1, "accumulate_grad_batches": 2},
    "at an epoch's end": {"every_n_epochs": 1},
    "in mid-validation": {"every_n_train_steps": 2, "val_check_interval": 2},
    "with a schedule": {"every_n_train_steps": 4, "scheduler": "onecycle"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_plain_lightning_resumes_from_elastic_checkpoints(tmp_path, run, kind):
    """Each checkpoint of an elastic run loads without `ElasticCallback` and goes on as from plain Lightning's own."""
    arguments = dict(KINDS[kind])
    when = {name: arguments.pop(name) for name in ("every_n_train_steps", "every_n_epochs") if name in arguments}
    scheduler = arguments.pop("scheduler", None)

    def saved(folder, *, elastic):
        saving = ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **when)
        loader = train_loader() if elastic else plain_loader()
        fit(tmp_path, elastic=elastic, run=run if elastic else None, model=WithoutChance(scheduler=scheduler),
            callbacks=[saving], loader=loader, max_epochs=2, enable_checkpointing=True,
            **arguments)  # fmt: skip
        return sorted(folder.glob("*.ckpt"))

    theirs, ours = saved(tmp_path / "plain", elastic=False), saved(tmp_path / "elastic", elastic=True)
    assert [path.name for path in ours] == [path.name for path in theirs] != []
    for plain, elastic in zip(theirs, ours, strict=True):
        one, other = (
            fit(tmp_path, elastic=False, model=WithoutChance(scheduler=scheduler), loader=plain_loader(),
                ckpt_path=path, max_epochs=2, seed=5, **arguments)
            for path in (plain, elastic)
        )  # fmt: skip
        assert_same_training(other, one)


def test_a_plain_checkpoint_in_mid_epoch_says_what_is_repeated(tmp_path, run):
    """Plain Lightning's checkpoint does not hold a position in the data: the epoch begins its order again, and it is said."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=3)
    fit(tmp_path, elastic=False, model=WithoutChance(), callbacks=[saving], loader=plain_loader(), max_epochs=1,
        enable_checkpointing=True)  # fmt: skip
    with pytest.warns(UserWarning, match=r"saved by plain Lightning after 3 batches of epoch 0.* has 3 batches less"):
        fit(tmp_path, elastic=True, run=run, model=WithoutChance(), ckpt_path=tmp_path / "step=3.ckpt", max_epochs=1)


def test_a_plain_checkpoint_of_an_epochs_end_is_exact(tmp_path, run):
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, elastic=False, model=WithoutChance(), callbacks=[saving], loader=plain_loader(), max_epochs=1,
        enable_checkpointing=True)  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the checkpoint that is resumed from")
        rest = fit(
            tmp_path, elastic=True, run=run, model=WithoutChance(), ckpt_path=tmp_path / "epoch=0.ckpt", max_epochs=2
        )
    whole = fit(tmp_path, elastic=False, model=WithoutChance(), loader=plain_loader(), max_epochs=2)
    assert rest.model.drawn == whole.model.drawn[len(whole.model.drawn) // 2 :]
