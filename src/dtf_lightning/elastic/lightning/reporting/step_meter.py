"""`StepMeter` measures the optimizer steps between two samples of a worker's event log.

It costs one reading of the clock per sample. Nothing in it waits for the device, but for reading the loss of the last batch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from dtf_lightning.elastic.observe.time_account import Bucket, TimeAccount

DEFAULT_INTERVAL = 50
"""Optimizer steps between two samples where the trainer names no number."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Optimizer steps in a row, in one generation. Times are in seconds."""

    num_steps: int
    seconds: float
    num_samples: int
    """Samples in the whole world."""
    data_wait: float
    """What of the seconds was spent waiting for data."""
    loss: float | None
    """The loss of the last batch; `None` if it was not read, or is not finite."""


class StepMeter:
    """The steps since the last sample. `account`: the worker's time account, which knows the time spent waiting for data."""

    def __init__(self, account: TimeAccount) -> None:
        self.interval = DEFAULT_INTERVAL
        """Number of optimizer steps between two samples."""
        self._account = account
        self._step: int | None = None
        """The global step at which the stretch began; `None` before the first step of a generation."""
        self._began = 0.0
        self._wait_before = 0.0
        self._num_samples = 0
        self._loss: torch.Tensor | None = None

    @property
    def runs(self) -> bool:
        """Whether a stretch has begun."""
        return self._step is not None

    def stop(self) -> None:
        """Drop the stretch, because a new generation begins."""
        self._step = None

    def begin(self, step: int) -> None:
        """Begin a stretch at the global step `step`."""
        self._step, self._num_samples = step, 0
        self._began = time.monotonic()
        self._wait_before = self._account.of(Bucket.DATA_WAIT)

    def keep_loss(self, outputs: Any) -> None:
        """Keep the loss of a trained batch without reading it, because reading would wait for the device."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = loss if isinstance(loss, torch.Tensor) else None

    def add(self, num_samples: int) -> None:
        """Count a committed batch."""
        self._num_samples += num_samples

    def is_due(self, step: int) -> bool:
        """Return whether `interval` steps have been made since the stretch began."""
        return self._step is not None and step - self._step >= self.interval

    def measure(self, step: int, *, reads_loss: bool) -> Stretch | None:
        """Return the stretch up to `step`; `None` without a step in it. `reads_loss` waits for the device."""
        if self._step is None or step == self._step:
            return None
        return Stretch(
            num_steps=step - self._step,
            seconds=time.monotonic() - self._began,
            num_samples=self._num_samples,
            data_wait=self._account.of(Bucket.DATA_WAIT) - self._wait_before,
            loss=finite(self._loss) if reads_loss else None,
        )


def finite(value: Any) -> float | None:
    """Return a number or a tensor of one element as a float; `None` if it is neither, or not finite."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
