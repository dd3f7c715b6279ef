"""The settings of snapshots that `ElasticCallback` is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.errors import SettingsError

SHARED_MEMORY = Path("/dev/shm")
MEMORY_SHARE = 0.5
"""The part of the free memory (of the file system of `snapshot_dir`) that is used when no bound is given."""


@dataclass(frozen=True, kw_only=True)
class SnapshotSettings:
    """Where snapshots lie, how often they are taken and how much memory they may use."""

    every_n_steps: int | None = None
    """Optimizer steps between two snapshots while training goes on; `None`: snapshots only when workers stop."""
    folder: Path = SHARED_MEMORY
    memory: int | None = None
    """Bytes that a run's snapshots may take on one node; `None`: half of what is free there at the start."""

    def __post_init__(self) -> None:
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise SettingsError(
                f"ElasticCallback(snapshot_every_n_steps={self.every_n_steps}): expected at least 1, or None for "
                "snapshots only when the workers stop"
            )
        if self.memory is not None and self.memory < 0:
            raise SettingsError(
                f"ElasticCallback(snapshot_memory={self.memory}): expected bytes, at least 0 (0 puts all on the disk)"
            )
