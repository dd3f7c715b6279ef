"""`RunSettings` holds the arguments of `ElasticCallback` and `ElasticDDPStrategy`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from dtf_lightning.elastic.data.step_plans import BatchSettings
from dtf_lightning.elastic.lightning.data.evaluation import Evaluation
from dtf_lightning.elastic.snapshots.settings import SnapshotSettings
from dtf_lightning.errors import SettingsError

Stop = Literal["together", "any"]


def check_stop(stop: str) -> None:
    """Raise `SettingsError` if there is no such way to stop."""
    if stop not in get_args(Stop):
        choices = ", ".join(map(repr, get_args(Stop)))
        raise SettingsError(f"ElasticCallback(stop={stop!r}): choose one of {choices}")


@dataclass(kw_only=True)
class RunSettings:
    """Hold a run's settings; the arguments of `ElasticCallback` explain them."""

    batches: BatchSettings = field(default_factory=BatchSettings)
    ledger: bool = False
    run_dir: str | None = None
    seed: int | None = None
    evaluation: Evaluation = "padded"
    stop: Stop = "together"
    snapshots: SnapshotSettings = field(default_factory=SnapshotSettings)
    verify_every_n_steps: int | None = None
