"""What is known of one checkpoint: where it is, what it weighs, how good it is."""

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
    """Relative to the checkpoint folder."""
    size: int
    """Bytes."""
    sha256: str
    """Hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One checkpoint. Frozen: what is learnt later (a metric, a suspicion) makes a new one."""

    name: str
    """Of the file, or of the folder of a sharded one; also what users call it."""
    serial: int
    """In the order of saving, from 1; unlike `step` it never goes back."""
    step: int
    """Optimizer steps that the state has behind it."""
    epoch: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    saved_at: float = 0.0
    """Seconds since the epoch, UTC."""
    parts: tuple[Part, ...] = ()
    suspect: bool = False
    """Saved after training began to diverge: never resumed from while there is another."""

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.size for part in self.parts)

    def metric(self, monitor: str) -> float | None:
        """The metric if it can be compared; `None` when it is missing, NaN or infinite."""
        value = self.metrics.get(monitor)
        return value if value is not None and math.isfinite(value) else None

    def to_json(self) -> dict[str, Any]:
        """As the manifest holds it."""
        return {
            "name": self.name,
            "serial": self.serial,
            "step": self.step,
            "epoch": self.epoch,
            # JSON has no NaN and no infinity: `repr` has, and gives every float back as it was.
            "metrics": {key: repr(float(value)) for key, value in self.metrics.items()},
            "saved_at": self.saved_at,
            "parts": [[part.path, part.size, part.sha256] for part in self.parts],
            "suspect": self.suspect,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """Raises `KeyError`, `TypeError` or `ValueError` for what `to_json` has not written."""
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
        """The same checkpoint with metrics that were measured after it was saved."""
        return replace(self, metrics={**self.metrics, **metrics})


def ranking(record: Record, monitor: str, mode: Mode) -> tuple[float, int]:
    """Sort key, best first, of a record that has the metric. Of equal ones the older is better: nothing is replaced."""
    value = record.metric(monitor)
    assert value is not None
    return (value if mode == "min" else -value, record.serial)
