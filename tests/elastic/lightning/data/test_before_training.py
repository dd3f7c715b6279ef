"""An evaluation before `fit`, when the world is provisional: it covers all samples on every node."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest

from dtf_lightning.elastic.lightning.callback import ElasticCallback
from support.elastic.programs.restart_life import environment_of_torchrun
from support.elastic.run_of_one import NUM_SAMPLES, Net, train_loader, val_loader


@pytest.mark.parametrize("strategy", ["auto", "ddp", "elastic_ddp"])
def test_all_samples(
    tmp_path: Path, start_run: Any, store_port: int, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Another node is known already, and this one is rank 1 of 2 for the time being: it validates alone; then it trains."""
    environment_of_torchrun(monkeypatch, store_port)
    start_run(rank=1, world_size=2)
    model = Net()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0, strategy=strategy,
        callbacks=[ElasticCallback()],
    )  # fmt: skip
    trainer.validate(model, val_loader(), verbose=False)
    assert model.validated == list(range(8))
    trainer.fit(model, train_loader())
    assert sorted(itertools.chain(*model.drawn)) == list(range(NUM_SAMPLES))
    model.validated.clear()
    trainer.validate(model, val_loader(), verbose=False)
    assert model.validated == list(range(8))
