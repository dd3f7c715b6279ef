"""The losses of the last few steps, averaged over all ranks, without a synchronisation per step.

A loss goes into a slot of a buffer on its own device. When the buffer is full, one collective sums it over the ranks
(so that all ranks see the same numbers and decide the same), and on CUDA its copy to the host is started; it is read
when the next buffer is full, long after it has arrived. Between, the host never waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums a tensor over all ranks and returns it."""


@dataclass
class _Pending:
    host: torch.Tensor
    arrived: Any
    steps: list[int]


class LossSlots:
    """See the module's docstring.

    Args:
        num_slots: losses per collective.
        device: where the losses are.
        asynchronous: read a buffer when the next one is full; by default, on CUDA only.
    """

    def __init__(self, num_slots: int, device: torch.device, *, asynchronous: bool | None = None) -> None:
        self.num_slots = num_slots
        self._device = device
        self._asynchronous = device.type == "cuda" if asynchronous is None else asynchronous
        # (num_slots,)
        self._losses = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._listed = [0.0] * num_slots
        self._steps: list[int | None] = [None] * num_slots
        self._pending: _Pending | None = None

    def put(self, slot: int, loss: Any, step: int) -> None:
        """Keep a loss (a tensor of one element, or a number); no wait."""
        if self._asynchronous:
            value = loss.detach() if isinstance(loss, torch.Tensor) else float(loss)
            self._losses[slot : slot + 1].copy_(value.reshape(1)) if isinstance(value, torch.Tensor) else self._losses[
                slot
            ].fill_(value)
        else:
            self._listed[slot] = float(loss)
        self._steps[slot] = step

    def collect(self, reduce: Reduce | None) -> list[tuple[int, float]]:
        """Sum over the ranks and empty the slots; (step, mean loss) of those that have arrived, oldest first.

        A slot in which any rank had a NaN or an infinity gives NaN. `reduce=None`: there is one rank.
        """
        present = torch.tensor([step is not None for step in self._steps])
        steps = [step if step is not None else -1 for step in self._steps]
        self._steps = [None] * self.num_slots
        if self._asynchronous:
            arrived = self.flush()
            self._pending = self._start(present, steps, reduce)
            return arrived
        losses = torch.tensor(self._listed, dtype=torch.float64)
        table = _table(losses, present)
        if reduce is not None:
            table = reduce(table.to(self._device)).cpu()
        return _read(table, steps)

    def flush(self) -> list[tuple[int, float]]:
        """What is on its way."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        if pending.arrived is not None:
            pending.arrived.synchronize()
        return _read(pending.host, pending.steps)

    def drop(self) -> None:
        """Forget all: after a rescale, or a rollback."""
        self._steps = [None] * self.num_slots
        self._pending = None

    def _start(self, present: torch.Tensor, steps: list[int], reduce: Reduce | None) -> _Pending:
        cuda = self._device.type == "cuda"
        if cuda:
            present = present.pin_memory()
        table = _table(self._losses, present.to(self._device, non_blocking=True))
        if reduce is not None:
            table = reduce(table)
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=cuda)
        host.copy_(table, non_blocking=True)
        arrived = None
        if cuda:
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        return _Pending(host, arrived, steps)


def _table(losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """(3, num_slots): sum of the finite losses, how many they are, how many are not finite."""
    finite = torch.isfinite(losses) & present
    zero = torch.zeros_like(losses)
    return torch.stack(
        [torch.where(finite, losses, zero), finite.to(losses.dtype), (present & ~finite).to(losses.dtype)]
    )


def _read(table: torch.Tensor, steps: list[int]) -> list[tuple[int, float]]:
    sums, counts, bad = table.tolist()
    found = []
    for step, total, count, num_bad in zip(steps, sums, counts, bad, strict=True):
        if num_bad:
            found.append((step, math.nan))
        elif count:
            found.append((step, total / count))
    return found
