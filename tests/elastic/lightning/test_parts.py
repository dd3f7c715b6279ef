"""The small parts of the Lightning side, each alone."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from dtf_lightning.elastic.lightning.checks.fingerprint import parameter_signature, settings_fingerprint
from dtf_lightning.elastic.lightning.cluster_environment import ElasticEnvironment
from dtf_lightning.elastic.lightning.reporting import progress_bars
from dtf_lightning.elastic.lightning.reporting.csv_log import CsvFile
from dtf_lightning.elastic.lightning.reporting.rank_zero import set_rank_zero
from dtf_lightning.elastic.lightning.rewind.progress import StepBoundary, TrainingProgress
from dtf_lightning.elastic.lightning.rewind.unwinding import restore_module, strip_tracebacks
from dtf_lightning.elastic.rules.resume import LoopPhase
from support.elastic.run_of_one import Net, plain_loader, val_loader


def quiet_trainer(folder: Path, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(**{
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, "max_epochs": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": folder, **arguments,
    })  # fmt: skip


# --- progress --------------------------------------------------------------------------------------------------------

BOUNDARY = StepBoundary(batches_total=8, batches_in_epoch=2, consumed=16, global_step=4)

# (phase, batches ready/completed since the boundary, steps since it, weights changed) ->
# (rolled back, phase, batches in the epoch, consumed, global step)
CASES = {
    "at the boundary": ((LoopPhase.BATCH, 0, 0, 0, False), (False, LoopPhase.BATCH, 2, 16, 4)),
    "batch begun": ((LoopPhase.BATCH, 1, 0, 0, False), (True, LoopPhase.BATCH, 2, 16, 4)),
    "second of a group begun": ((LoopPhase.BATCH, 2, 1, 0, False), (True, LoopPhase.BATCH, 2, 16, 4)),
    "between batches of a group": ((LoopPhase.ADVANCE_END, 1, 1, 0, False), (True, LoopPhase.BATCH, 2, 16, 4)),
    "stepped": ((LoopPhase.BATCH, 1, 0, 1, True), (False, LoopPhase.ADVANCE_END, 3, 24, 5)),
    "stepped, not counted": ((LoopPhase.BATCH, 1, 0, 0, True), (False, LoopPhase.ADVANCE_END, 3, 24, 5)),
    "committed": ((LoopPhase.ADVANCE_END, 1, 1, 1, True), (False, LoopPhase.ADVANCE_END, 3, 16, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_settle(tmp_path: Path, case: str) -> None:
    """Forward where weights have changed, back where not; then all counters of a batch and of the epoch agree."""
    (phase, ready, completed, steps, changed), expected = CASES[case]
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(Net())
    trainer.training = True
    trainer.accumulate_grad_batches = 1
    trainer._logger_connector._first_loop_iter = True
    loop = trainer.fit_loop.epoch_loop
    trainer.fit_loop.epoch_progress.current.ready = trainer.fit_loop.epoch_progress.total.ready = 1
    for tracker, base in ((loop.batch_progress.total, 8), (loop.batch_progress.current, 2)):
        tracker.ready = tracker.started = tracker.processed = base + ready
        tracker.completed = base + completed
    step = loop.automatic_optimization.optim_progress.optimizer.step
    step.total.ready, step.total.completed = 4 + steps + (changed and not steps), 4 + steps
    progress = TrainingProgress()
    progress.boundary, progress.phase, progress.stepped = BOUNDARY, phase, changed
    progress.consumed, progress.batch_samples, progress.dataset_size = 16, 8, 100

    rolled_back = progress.settle(trainer)

    batches = loop.batch_progress
    assert (rolled_back, progress.phase, batches.current.completed, progress.consumed, trainer.global_step) == expected
    for tracker in (batches.total, batches.current):
        assert tracker.ready == tracker.started == tracker.processed == tracker.completed
    assert step.total.ready == step.total.completed
    epochs = trainer.fit_loop.epoch_progress.current
    assert (epochs.ready, epochs.started, epochs.processed, epochs.completed) == (1, 1, 0, 0)
    before = progress.state_dict()
    assert progress.settle(trainer) is False, "settling twice is settling once"
    assert progress.state_dict() == before | {"phase": progress.phase.value}
    other = TrainingProgress()
    other.load_state_dict(before)
    assert other.state_dict() == before


# --- rank zero -------------------------------------------------------------------------------------------------------


def test_csv_goes_on(tmp_path: Path) -> None:
    """A new rank zero goes on in the former one's metrics.csv: same header, no row lost, new columns welcome."""
    former = CSVLogger(tmp_path, name="", version="v")
    former.log_metrics({"loss": 1.0}, step=0)
    former.log_metrics({"loss": 0.5, "acc": 0.1}, step=1)
    former.save()
    heir = CSVLogger(tmp_path, name="", version="v")
    CsvFile(heir).go_on(again=2)
    heir.log_metrics({"loss": 0.25, "acc": 0.2}, step=2)
    heir.save()
    rows = list(csv.DictReader((tmp_path / "v" / "metrics.csv").open()))
    assert [row["loss"] for row in rows] == ["1.0", "0.5", "0.25"]
    heir.log_metrics({"loss": 0.1, "new": 3.0}, step=3)
    heir.save()
    rows = list(csv.DictReader((tmp_path / "v" / "metrics.csv").open()))
    assert [(row["step"], row["acc"], row["new"]) for row in rows] == [
        ("0", "", ""), ("1", "0.1", ""), ("2", "0.2", ""), ("3", "", "3.0"),
    ]  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["metrics.csv"]


@pytest.mark.parametrize("content", [None, ""])
def test_csv_without_rows(tmp_path: Path, content: str | None) -> None:
    """The former rank zero died before it wrote anything."""
    if content is not None:
        (tmp_path / "v").mkdir()
        (tmp_path / "v" / "metrics.csv").write_text(content)
    heir = CSVLogger(tmp_path, name="", version="v")
    CsvFile(heir).go_on(again=2)
    heir.log_metrics({"loss": 0.25}, step=2)
    heir.save()
    assert list(csv.DictReader((tmp_path / "v" / "metrics.csv").open())) == [{"loss": "0.25", "step": "2"}]


def test_progress_bar_of_a_promoted_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Off on rank 1, it goes on where training is once the worker is rank 0."""

    class Promote(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                progress_bars.take_over(trainer, in_epoch=True)
                self.bar = trainer.progress_bar_callback.train_progress_bar
                self.shown = (self.bar.n, self.bar.total, self.bar.disable)

        def on_train_end(self, *_: Any) -> None:
            self.at_end = self.bar.n

    promote, bar = Promote(), TQDMProgressBar()
    bar.disable()
    trainer = quiet_trainer(tmp_path, enable_progress_bar=True, callbacks=[promote, bar])
    trainer.fit(Net(), plain_loader(), val_loader())
    assert promote.shown == (0, 6, False)
    assert promote.at_end == 6
    assert "6/6" in capsys.readouterr().out


def test_set_rank_zero() -> None:
    """Both of Lightning's decorators; `rank_zero_only` functions run on rank 0 alone."""
    said: list[int] = []
    former = rank_zero_only.rank
    try:
        for rank in (1, 0):
            set_rank_zero(rank)
            rank_zero_only(said.append)(rank)
    finally:
        set_rank_zero(former)
    assert said == [0]


# --- unwinding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_forward", [False, True])
def test_forward_is_put_back(tmp_path: Path, own_forward: bool) -> None:
    """Lightning's redirection leaves a patched `forward` on the module when the step raises."""
    trainer, module = quiet_trainer(tmp_path), Net()
    trainer.strategy.connect(module)
    original = (lambda x: x) if own_forward else None
    module.forward = lambda *_: pytest.fail("the redirection's forward")
    restore_module(trainer, original)
    assert module.__dict__.get("forward") is original
    assert module(torch.ones(2, 4)).shape == ((2, 4) if own_forward else (2, 1))


def test_modes_after_an_interrupted_validation(tmp_path: Path) -> None:
    """Back in train mode, except for the part that the user had put into eval mode."""
    trainer, module = quiet_trainer(tmp_path), Net()
    module.layers[1].eval()

    def fail(*_: Any) -> None:
        raise ConnectionError

    module.on_validation_batch_end = fail
    with pytest.raises(ConnectionError):
        trainer.fit(module, plain_loader(), val_loader())
    assert not module.training
    trainer.validating = True
    restore_module(trainer, None)
    assert module.training
    assert trainer.training
    assert [layer.training for layer in module.layers] == [True, False, True, True]
    assert module._current_fx_name is None


def test_tracebacks_are_freed() -> None:
    """Of the whole chain of causes, also where it bites its own tail."""
    try:
        try:
            raise ValueError("first")
        except ValueError as first:
            raise RuntimeError("second") from first
    except RuntimeError as second:
        chain = second
    assert chain.__cause__ is not None
    chain.__cause__.__cause__ = chain
    strip_tracebacks(chain)
    assert chain.__traceback__ is None
    assert chain.__cause__.__traceback__ is None


# --- fingerprint and cluster environment -----------------------------------------------------------------------------


def test_fingerprint_names_differences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal for equal settings; each other setting differs under its own name, the number of devices is none."""

    def fingerprint(script: str = "print()", **arguments: Any) -> dict[str, str]:
        path = tmp_path / "train.py"
        path.write_text(script)
        monkeypatch.setattr(sys, "argv", [str(path)])
        return settings_fingerprint(quiet_trainer(tmp_path, **arguments))

    def different(other: dict[str, str]) -> list[str]:
        return [name for name in other if other[name] != mine[name]]

    mine = fingerprint()
    assert different(fingerprint()) == []
    assert different(fingerprint(accumulate_grad_batches=2)) == ["Trainer(accumulate_grad_batches)"]
    assert different(fingerprint(precision="bf16-mixed")) == ["Trainer(precision)"]
    assert different(fingerprint(gradient_clip_val=0.5)) == ["Trainer(gradient_clip_val)"]
    assert different(fingerprint(max_epochs=5, max_steps=7)) == ["Trainer(max_epochs)", "Trainer(max_steps)"]
    assert different(fingerprint("print(1)")) == ["script content (SHA-256)"]
    assert mine["script"] == "train.py"


def test_parameter_signature() -> None:
    """Name, type and shape of every parameter and persistent buffer, in order."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    module.register_buffer("hidden", torch.ones(1), persistent=False)
    assert parameter_signature(module)[:2] == ("0.weight float32 (3, 2)", "0.bias float32 (3,)")
    assert parameter_signature(module)[-1] == "1.num_batches_tracked int64 ()"
    assert len(parameter_signature(module)) == 7


def test_cluster_environment() -> None:
    """The provisional place, then the generation's; the trainer's own ideas do not count."""
    environment = ElasticEnvironment(rank=2, world_size=3, local_rank=0, num_local_workers=2)
    assert (environment.global_rank(), environment.world_size(), environment.node_rank()) == (2, 3, 1)
    environment.enter(rank=5, world_size=6)
    environment.set_global_rank(0)
    environment.set_world_size(1)
    environment.validate_settings(num_devices=8, num_nodes=9)
    assert (environment.global_rank(), environment.world_size(), environment.node_rank()) == (5, 6, 2)
    assert environment.local_rank() == 0
    assert environment.creates_processes_externally
    assert not ElasticEnvironment.detect()
    for name in ("main_address", "main_port"):
        with pytest.raises(NotImplementedError, match="each generation has a store of its own"):
            getattr(environment, name)
