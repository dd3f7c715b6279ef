"""Weights & Biases offline and MLflow's file store, where they are installed: one run, each step once, resumed too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from dtf_lightning.elastic.lightning.reporting.rank_zero import set_rank_zero
from dtf_lightning.elastic.lightning.reporting.run_log import adopt_version
from support.elastic.run_of_one import Disturbance, fit

DISTURBANCES = [
    Disturbance("training_step", 4, "told"), Disturbance("validation_step", 6, "told"),
    Disturbance("on_train_epoch_end", 12, "told"), Disturbance("after_step", 15, "told"),
]  # fmt: skip


@pytest.mark.leaks(reason="wandb and mlflow leave threads, variables and files behind")
def test_mlflow(tmp_path: Path, start_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of four rescales, and a new rank 0 that goes on in it: one MLflow run, each step once."""
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path / 'mlruns'}"
    logger = MLFlowLogger(tracking_uri=uri)
    run = start_run()
    fit(
        tmp_path,
        elastic=True,
        logger=logger,
        run=run,
        disturbances=DISTURBANCES,
        callbacks=[LearningRateMonitor("step")],
    )
    client = mlflow.tracking.MlflowClient(uri)
    (experiment,) = [one for one in client.search_experiments() if one.name == "lightning_logs"]
    (only,) = client.search_runs([experiment.experiment_id])
    for name, steps in (("loss_step", list(range(18))), ("val_loss", [5, 11, 17]), ("lr-Adam", list(range(18)))):
        assert [metric.step for metric in client.get_metric_history(only.info.run_id, name)] == steps
    heir = MLFlowLogger(tracking_uri=uri)
    adopt_version(heir, logger.version)
    heir.log_metrics({"loss_step": 1.0}, step=18)
    assert len(client.search_runs([experiment.experiment_id])) == 1
    assert len(client.get_metric_history(only.info.run_id, "loss_step")) == 19


@pytest.mark.leaks(reason="wandb and mlflow leave threads, variables and files behind")
def test_wandb(tmp_path: Path, start_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same; another process's part of the run is a folder of its own with the same id, for `wandb sync --append`."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    run = start_run()
    fit(tmp_path, elastic=True, logger=logger, run=run, disturbances=DISTURBANCES)
    steps = logger.experiment.summary["trainer/global_step"]
    name = logger.version
    wandb.finish()
    assert steps == 17
    heir = WandbLogger(save_dir=tmp_path, offline=True)
    adopt_version(heir, name)
    set_rank_zero(0)
    heir.log_metrics({"loss_step": 1.0}, step=18)
    wandb.finish()
    wandb.teardown()
    folders = sorted(path.name for path in (tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(folder.endswith(name) for folder in folders)
