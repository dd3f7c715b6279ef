"""`RunSettings` holds the arguments of `ElasticCallback` and `ElasticDDPStrategy`."""

from __future__ import annotations

from dataclasses import dataclass, field

from dtf_lightning.elastic.data.step_plans import BatchSettings
from dtf_lightning.elastic.lightning.data.evaluation import Evaluation
from dtf_lightning.elastic.snapshots.settings import SnapshotSettings


@dataclass(kw_only=True)
class RunSettings:
    """Hold a run's settings; the arguments of `ElasticCallback` explain them."""

    batches: BatchSettings = field(default_factory=BatchSettings)
    ledger: bool = False
    run_dir: str | None = None
    seed: int | None = None
    evaluation: Evaluation = "padded"
    snapshots: SnapshotSettings = field(default_factory=SnapshotSettings)
    verify_every_n_steps: int | None = None
