"""The record of one checkpoint: which files it has, at which step it was saved, how good it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Mode = Literal["min", "max"]
MODES: tuple[Mode, ...] = ("min", "max")


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint."""

    path: str
    """The file's path, relative to the checkpoint folder."""
    size: int
    """The file's size in bytes."""
    sha256: str
    """The SHA-256 of the file's content, hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One checkpoint. Frozen: what is learnt later (a metric, a suspicion) makes a new record."""

    name: str
    """The name of the file, or of the folder of a sharded checkpoint; also what users call it."""
    serial: int
    """The number in the order of saving, from 1; unlike `step` it never goes back."""
    step: int
    """The number of optimizer steps that led to the state."""
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    saved_at: float = 0.0
    """When it was saved, in seconds since the epoch (UTC)."""
    parts: tuple[Part, ...] = ()
    suspect: bool = False
    """Whether it was saved after training began to diverge: never resumed from while there is another one."""

    @property
    def size(self) -> int:
        """The size of all parts in bytes."""
        return sum(part.size for part in self.parts)

    def metric(self, monitor: str) -> float | None:
        """Return the metric if it can be compared; `None` when it is missing, NaN or infinite."""
        value = self.metrics.get(monitor)
        return value if value is not None and math.isfinite(value) else None

    def to_json(self) -> dict[str, Any]:
        """Return the record as the manifest holds it."""
        return {
            "name": self.name,
            "serial": self.serial,
            "step": self.step,
            "epoch": self.epoch,
            # JSON has no NaN and no infinity: `repr` has both, and gives every float back as it was.
            "metrics": {key: repr(float(value)) for key, value in self.metrics.items()},
            "saved_at": self.saved_at,
            "parts": [[part.path, part.size, part.sha256] for part in self.parts],
            "suspect": self.suspect,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Return the record that `to_json` wrote. Raises `KeyError`, `TypeError` or `ValueError` for anything else."""
        return cls(
            name=data["name"],
            serial=data["serial"],
            step=data["step"],
            epoch=data["epoch"],
            metrics={key: float(value) for key, value in data["metrics"].items()},
            saved_at=data["saved_at"],
            parts=tuple(Part(*part) for part in data["parts"]),
            suspect=data["suspect"],
        )

    def with_metrics(self, metrics: Mapping[str, float]) -> Record:
        """Return the same checkpoint with metrics that were measured after it was saved."""
        return replace(self, metrics={**self.metrics, **metrics})


def ranking(record: Record, monitor: str, mode: Mode) -> tuple[float, int]:
    """Return a sort key, best first, of a record that has the metric.

    At equal metrics the older record is better, so that it is not replaced.
    """
    value = record.metric(monitor)
    assert value is not None
    return (value if mode == "min" else -value, record.serial)
