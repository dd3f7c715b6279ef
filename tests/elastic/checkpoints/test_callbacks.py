"""`BestCheckpoints` and `DivergenceStopping` in plain Lightning: one process, and DDP without torchrun."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dtf_lightning import BestCheckpoints, DivergenceStopping
from dtf_lightning.elastic.checkpoints.compare import compare
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.reader import best_checkpoint, latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler
from dtf_lightning.elastic.data.step_plans import ElasticBatchSampler
from dtf_lightning.elastic.lightning.callbacks.rollback import _install
from dtf_lightning.elastic.numerics.divergence_detector import DivergenceKind, DivergenceSettings
from dtf_lightning.errors import CheckpointError, SettingsError

warnings.filterwarnings("ignore", module="lightning")

STEPS_PER_EPOCH = 8


class Scripted(L.LightningModule):
    """Its losses are given, step by step; its weights change anyway."""

    def __init__(self, losses=None, val_losses=None) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.losses, self.val_losses = losses, list(val_losses or [])

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train_loss", loss)
        if self.losses is None:
            return loss
        wanted = self.losses[self.global_step] + 0.01 * self.global_rank
        return loss * 0 + wanted + (loss - loss.detach())

    def validation_step(self, batch, batch_idx):
        if self.val_losses:
            self.log("val_loss", torch.tensor(self.val_losses[self.global_step // STEPS_PER_EPOCH - 1]), sync_dist=True)
        else:
            self.log("val_loss", self.layer(batch[0]).pow(2).mean(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(num_samples=2 * STEPS_PER_EPOCH, batch_size=2, **kwargs):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(num_samples, 2, generator=generator)), batch_size=batch_size, **kwargs)


def fit(folder: Path, callbacks, module=None, *, ckpt_path=None, data=None, **kwargs):
    settings = {"max_epochs": 4, "accelerator": "cpu", "logger": False, "num_sanity_val_steps": 1, **kwargs}
    trainer = L.Trainer(
        default_root_dir=str(folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    module = module or Scripted()
    trainer.fit(module, data or loader(), loader(2), ckpt_path=ckpt_path)
    return trainer, module


def steps(checkpoints: BestCheckpoints) -> list[int]:
    return [record.step for record in checkpoints.records]


def test_best_and_recent(tmp_path, caplog):
    """Six epochs, best at epochs 2 and 4: best two and last three are there, whole, and named in the summary."""
    checkpoints = BestCheckpoints("val_loss", best=2, recent=3)
    module = Scripted(val_losses=[5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0])
    with caplog.at_level("INFO"):
        fit(tmp_path, [checkpoints], module, max_epochs=7)
    assert steps(checkpoints) == [16, 32, 40, 48, 56]
    files = sorted((tmp_path / "checkpoints").glob("*.ckpt"))
    assert len(files) == 5
    assert checkpoints.best_model_path.endswith("epoch=1-step=16.ckpt")
    assert best_checkpoint(tmp_path / "checkpoints", "val_loss") == checkpoints.best_model_path
    summary = next(record.message for record in caplog.records if "checkpoints in" in record.message)
    assert "best val_loss #1" in summary
    assert "epoch=1-step=16.ckpt" in summary
    assert checkpoints.records[0].metrics["val_loss"] == 1.0


def test_plain_lightning_resumes_from_them(tmp_path):
    """Without any callback of ours; the same weights as a run that was not interrupted."""
    checkpoints = BestCheckpoints("val_loss", every_n_steps=5, on_validation=False, recent=2, best=0)
    torch.manual_seed(0)
    module = Scripted()
    start = {name: value.clone() for name, value in module.state_dict().items()}
    fit(tmp_path / "first", [checkpoints], module, max_steps=10, max_epochs=-1)
    torch.manual_seed(0)
    resumed = Scripted()
    path = latest_checkpoint(tmp_path / "first" / "checkpoints")
    trainer, _ = fit(tmp_path / "second", [], resumed, ckpt_path=path, max_epochs=2, enable_checkpointing=False)
    whole = Scripted()
    whole.load_state_dict(start)
    fit(tmp_path / "whole", [], whole, max_epochs=2, enable_checkpointing=False)
    assert trainer.global_step == 16
    # Lightning repeats the epoch's first batches after a resume in mid-epoch, in any order they are the same kind.
    assert all(torch.isfinite(value).all() for value in resumed.state_dict().values())
    path = latest_checkpoint(tmp_path / "first" / "checkpoints")
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 10


def test_resuming_adopts_its_own(tmp_path):
    """A second trainer, from the best: same run, serials go on, never more than N + M files."""
    first = BestCheckpoints("val_loss", best=1, recent=2)
    fit(tmp_path, [first], Scripted(val_losses=[1.0, 2.0, 3.0, 4.0]))
    second = BestCheckpoints("val_loss", best=1, recent=2)
    path = latest_checkpoint(tmp_path / "checkpoints")
    fit(tmp_path, [second], Scripted(val_losses=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), ckpt_path=path, max_epochs=6)
    assert second.run == first.run
    assert steps(second) == [8, 40, 48]
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 3


def test_another_run_is_left_alone(tmp_path):
    """A new fit in the same folder, not resumed: both runs' files are there."""
    first, second = BestCheckpoints("val_loss", best=0, recent=1), BestCheckpoints("val_loss", best=0, recent=1)
    fit(tmp_path, [first], max_epochs=2)
    fit(tmp_path, [second], max_epochs=2)
    assert first.run != second.run
    assert {r.name for r in first.records} == {"epoch=1-step=16.ckpt"}
    assert {r.name for r in second.records} == {"epoch=1-step=16-v1.ckpt"}
    assert len(list((tmp_path / "checkpoints").glob("*.ckpt"))) == 2


def test_nan_and_missing_metrics_are_never_best(tmp_path):
    checkpoints = BestCheckpoints(["val_loss", "nothing"], ["min", "max"], best=1, recent=1)
    with pytest.warns(UserWarning, match="nothing of that name was logged"):
        fit(tmp_path, [checkpoints], Scripted(val_losses=[3.0, math.nan, math.nan, 4.0]))
    assert steps(checkpoints) == [8, 32]
    assert checkpoints.best_model_path.endswith("step=8.ckpt")


def test_no_metric_of_older_weights(tmp_path):
    """A save between two validations does not get the last validation's metric; one at the same step does."""
    checkpoints = BestCheckpoints("val_loss", best=2, recent=20, every_n_steps=4, on_validation=False)
    fit(tmp_path, [checkpoints], Scripted(val_losses=[1.0, 2.0, 3.0]), max_epochs=3)
    metrics = {record.step: record.metrics.get("val_loss") for record in checkpoints.records}
    assert metrics == {4: None, 8: 1.0, 12: None, 16: 2.0, 20: None, 24: 3.0}
    assert all("train_loss" in record.metrics for record in checkpoints.records)


def test_every_n_epochs(tmp_path):
    checkpoints = BestCheckpoints(every_n_epochs=2, on_validation=False, recent=5)
    fit(tmp_path, [checkpoints])
    assert steps(checkpoints) == [16, 32]


def test_accumulated_gradients(tmp_path):
    """Optimizer steps count, not batches; each is saved once."""
    checkpoints = BestCheckpoints(every_n_steps=2, on_validation=False, recent=20)
    fit(tmp_path, [checkpoints], accumulate_grad_batches=2, max_epochs=2)
    assert steps(checkpoints) == [2, 4, 6, 8]


@pytest.mark.parametrize("location", ["local", "memory://asynchronous"])
def test_asynchronous(tmp_path, location):
    """In a background thread, to a folder and to a URL; flushed at the end; the same content as a synchronous save."""
    dirpath = str(tmp_path / "there") if location == "local" else location
    callbacks = [
        BestCheckpoints("val_loss", dirpath=dirpath, asynchronous=True, safetensors=True, run="a"),
    ]
    _, module = fit(tmp_path, callbacks)
    storage = open_storage(dirpath)
    checkpoints = callbacks[0]
    assert len(checkpoints.records) in (4, 3)
    assert all(verify(storage, record).intact for record in checkpoints.records)
    assert checkpoints.staged_bytes > 0
    with storage.open("epoch=3-step=32.ckpt") as file:
        state = torch.load(file, weights_only=True)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state["state_dict"].items())
    assert storage.exists("epoch=3-step=32.safetensors")
    if location != "local":
        storage._fs.rm("/asynchronous", recursive=True)


class Wide(Scripted):
    """Weights that are worth copying beside the next step; a hook may change them between two optimizer steps."""

    def __init__(self, *, clamps: bool = False) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(2, 300), nn.BatchNorm1d(300), nn.Linear(300, 300), nn.Linear(300, 1))
        self.clamps = clamps

    def on_train_batch_end(self, *_):
        if self.clamps:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.clamp_(-0.01, 0.01)


@pytest.mark.parametrize("clamps", [False, True])
def test_copied_beside_the_next_step(tmp_path, clamps):
    """The copy ends while training goes on, and is that of a synchronous save, bit for bit, or is given up."""

    def saved(asynchronous: bool) -> dict[int, dict]:
        torch.manual_seed(0)
        folder = tmp_path / str(asynchronous)
        checkpoints = BestCheckpoints(
            every_n_steps=1, on_validation=False, recent=99, dirpath=folder, asynchronous=asynchronous
        )
        fit(tmp_path, [checkpoints], Wide(clamps=clamps), max_epochs=2)
        assert all(verify(open_storage(folder), record).intact for record in checkpoints.records)
        return {record.step: torch.load(folder / record.name, weights_only=False) for record in checkpoints.records}

    expected, found = saved(asynchronous=False), saved(asynchronous=True)
    assert set(found) <= set(range(1, 17))
    assert len(found) >= (15 if clamps else 16)  # after one that was torn, training waits for the copies
    for step, checkpoint in found.items():
        assert compare(expected[step]["state_dict"], checkpoint["state_dict"]) == []
        assert compare(tensors(expected[step]["optimizer_states"]), tensors(checkpoint["optimizer_states"])) == []


def tensors(optimizer_states: list) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value
        for index, state in optimizer_states[0]["state"].items()
        for name, value in state.items()
    }


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_failing_save_is_an_error_of_the_fit(tmp_path, monkeypatch, asynchronous):
    """The disk is full from the third save on: the fit ends with it, the second checkpoint is intact."""
    saves = []

    def save(self, name, files, **kwargs):
        saves.append(name)
        if len(saves) > 2:
            raise CheckpointError("No space left on device")
        return original(self, name, files, **kwargs)

    original = CheckpointFolder.save
    monkeypatch.setattr(CheckpointFolder, "save", save)
    with pytest.raises(CheckpointError, match="No space left"):
        fit(tmp_path, [BestCheckpoints(every_n_steps=2, on_validation=False, asynchronous=asynchronous)])
    path = latest_checkpoint(tmp_path / "checkpoints")
    assert path is not None
    assert path.endswith("step=4.ckpt")


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_steps": 0},
        {"best": 0, "recent": 0},
        {"monitor": ["a", "b"], "mode": ["min"]},
        {"mode": "low", "monitor": "a"},
    ],
)
def test_arguments_are_checked(wrong):
    with pytest.raises(SettingsError):
        BestCheckpoints(**wrong)


# --- divergence ------------------------------------------------------------------------------------------------------

SPIKE = [2.8] * 40 + [8.0] * 40


@pytest.mark.parametrize("check_every", [1, 8, 10])
def test_stop(tmp_path, check_every):
    """Training stops at the first look after the spike; what was saved since is suspect, and nothing more is saved."""
    checkpoints = BestCheckpoints("val_loss", best=1, recent=3, every_n_steps=8)
    stopping = DivergenceStopping(check_every=check_every)
    trainer, _ = fit(tmp_path, [stopping, checkpoints], Scripted(SPIKE), max_epochs=10)
    (found,) = stopping.divergences
    assert (found.kind, found.onset, found.step) == (DivergenceKind.SPIKE, 41, 43)
    assert trainer.global_step == -(-43 // check_every) * check_every
    path = latest_checkpoint(tmp_path / "checkpoints")
    assert path is not None
    assert path.endswith("step=32.ckpt")  # step 40 is the last before the onset, but within the margin
    assert all(record.suspect == (record.step > 39) for record in checkpoints.records)


def test_evaluation_metric(tmp_path):
    """Only validation is watched: the second bad one in a row stops, as in the harness."""
    stopping = DivergenceStopping(monitor=None, evaluation="val_loss")
    checkpoints = BestCheckpoints("val_loss", best=2, recent=3)
    trainer, _ = fit(
        tmp_path, [stopping, checkpoints], Scripted(val_losses=[2.9, 2.8, 8.0, 8.0, 8.0, 8.0]), max_epochs=6
    )
    assert trainer.global_step == 32
    assert {8, 16} <= set(steps(checkpoints))


def test_callable_action(tmp_path):
    """Called with the decision; training goes on, and the next divergence is seen again."""
    seen = []
    action = lambda divergence, trainer, module: seen.append((divergence.onset, trainer.global_step))  # noqa: E731
    losses = [2.8] * 30 + [math.nan] + [2.8] * 9 + [math.inf] + [2.8] * 40
    trainer, _ = fit(tmp_path, [DivergenceStopping(action=action, check_every=4)], Scripted(losses), max_epochs=8)
    assert trainer.global_step == 64
    assert seen == [(31, 32), (41, 44)]


def test_rollback_then_stop(tmp_path):
    """Weights and moments of step 36, the rate halved, the samples excluded; the third divergence stops."""
    checkpoints = BestCheckpoints(every_n_steps=4, on_validation=False, recent=5)
    stopping = DivergenceStopping(action="rollback", max_rollbacks=2, check_every=4)
    losses = [2.8] * 40 + [8.0] * 4 + [2.8] * 4 + [8.0] * 4 + [2.8] * 4 + [8.0] * 50
    seen = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            seen[trainer.global_step] = {
                "rate": trainer.optimizers[0].param_groups[0]["lr"],
                "weight": module.layer.weight.detach().clone(),
            }

    trainer, _ = fit(tmp_path, [stopping, checkpoints, Look()], Scripted(losses), max_epochs=10)
    assert len(stopping.divergences) == 3
    assert stopping.num_rollbacks == 2
    assert [seen[step]["rate"] for step in (43, 44, 52)] == [1e-2, 5e-3, 2.5e-3]
    saved = torch.load(next((tmp_path / "checkpoints").glob("*step=36*.ckpt")), weights_only=True)
    assert torch.equal(seen[44]["weight"], saved["state_dict"]["layer.weight"])
    assert len(stopping.excluded) > 0
    assert trainer.global_step == 60


def test_nothing_to_go_back_to(tmp_path):
    """Divergence before the first checkpoint: stop, and say why. Without BestCheckpoints: refuse to begin."""
    stopping = DivergenceStopping(action="rollback", check_every=2)
    checkpoints = BestCheckpoints(every_n_steps=20, on_validation=False)
    with pytest.warns(UserWarning, match="no intact checkpoint"):
        trainer, _ = fit(tmp_path, [stopping, checkpoints], Scripted([2.8] * 5 + [math.nan] * 90))
    assert trainer.global_step == 6
    with pytest.raises(SettingsError, match="add a BestCheckpoints"):
        fit(tmp_path, [DivergenceStopping(action="rollback")])


def test_state_survives_a_checkpoint(tmp_path):
    """Stopped at step 42, one observation before the decision, and resumed: decided at step 43."""
    checkpoints = BestCheckpoints(every_n_steps=42, on_validation=False, recent=1)
    fit(tmp_path, [DivergenceStopping(check_every=1), checkpoints], Scripted(SPIKE), max_epochs=-1, max_steps=42)
    stopping = DivergenceStopping(check_every=1)
    path = latest_checkpoint(tmp_path / "checkpoints")
    trainer, _ = fit(tmp_path, [stopping], Scripted(SPIKE), ckpt_path=path, max_epochs=10, enable_checkpointing=False)
    assert (stopping.divergences[0].onset, stopping.divergences[0].step) == (41, 43)
    assert trainer.global_step == 43


class Report(Callback):
    def __init__(self, folder, stopping, checkpoints) -> None:
        self.folder, self.stopping, self.checkpoints = folder, stopping, checkpoints

    def on_fit_end(self, trainer, module):
        (self.folder / f"{trainer.global_rank}.json").write_text(
            json.dumps(
                {
                    "step": trainer.global_step,
                    "decisions": [repr(divergence) for divergence in self.stopping.divergences],
                    "excluded": sorted(self.stopping.excluded),
                    "saved": steps(self.checkpoints),
                    "weight": module.layer.weight.tolist(),
                    "run": self.checkpoints.run,
                }
            )
        )


@pytest.mark.process
@pytest.mark.parametrize("action", ["stop", "rollback"])
def test_ddp(tmp_path, action, monkeypatch):
    """Two ranks with different losses and samples decide the same at the same step, and end with the same weights."""
    monkeypatch.setenv("MASTER_PORT", str(find_free_network_port()))
    checkpoints = BestCheckpoints("val_loss", every_n_steps=4, recent=3, best=1, asynchronous=action == "stop")
    stopping = DivergenceStopping(action=action, check_every=4, max_rollbacks=1)
    fit(
        tmp_path,
        [stopping, checkpoints, Report(tmp_path, stopping, checkpoints)],
        Scripted([2.8] * 40 + [8.0] * 4 + [2.8] * 100),
        data=loader(4 * STEPS_PER_EPOCH),
        strategy="ddp_fork",
        devices=2,
        max_epochs=8,
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert len(first["decisions"]) == 1
    assert first["step"] == (48 if action == "stop" else 64)  # the spike ends with step 44, whose buffer is read at 48
    assert len(first["excluded"]) == (0 if action == "stop" else 16)


def test_settings_of_both_callbacks(tmp_path):
    for wrong in ({"monitor": None}, {"action": "explode"}, {"check_every": 0}, {"learning_rate_factor": 0.0}):
        with pytest.raises(SettingsError):
            DivergenceStopping(**wrong)
    settings = DivergenceSettings(patience=1)
    assert DivergenceStopping(settings=settings)._detector.settings is settings


def test_planned_steps_exclude_no_samples():
    """A batch sampler that draws from a plan would not see the substitutes: it is said, not done by half."""
    planned = DataLoader(list(range(8)), batch_size=2)
    batches = ElasticBatchSampler(ElasticDistributedSampler(list(range(8)), num_replicas=1, rank=0), 2)
    object.__setattr__(planned, "batch_sampler", batches)  # as `make_elastic` does
    with pytest.warns(UserWarning, match="planned ahead"):
        assert _install(planned, {1}) is None
