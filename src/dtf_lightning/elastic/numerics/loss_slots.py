"""Averages the losses of the last few steps over all ranks, without a synchronisation per step.

A loss goes into a slot of a buffer on its own device. When the buffer is full, one collective begins to sum it over the
ranks (so that all ranks see the same numbers and decide the same), and on CUDA its copy to the host is started; it is
read when the next buffer is full, long after it has arrived. In between, the host waits neither for the device nor for
other ranks. With one rank on the CPU there is nothing to wait for: the buffer is read at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Work(Protocol):
    """What `torch.distributed` returns for a collective with `async_op=True`."""

    def wait(self) -> object:
        """Wait until the result is there; on CUDA, only what the stream does next waits for it."""
        ...


StartReduce = Callable[[torch.Tensor], Work]
"""Begins to sum a tensor over all ranks, in place."""


@dataclass
class _Pending:
    host: torch.Tensor
    wait: Callable[[], object]
    """Waits until `host` is complete."""
    steps: list[int | None]


class LossSlots:
    """The losses of the last few steps, averaged over all ranks; the module's docstring says how.

    Args:
        num_slots: the number of losses per collective.
        device: the device of the losses.
        on_device: whether losses stay on the device until their buffer is read; by default, on CUDA only.
    """

    def __init__(self, num_slots: int, device: torch.device, *, on_device: bool | None = None) -> None:
        self.num_slots = num_slots
        self._device = device
        self._on_device = device.type == "cuda" if on_device is None else on_device
        # (num_slots,)
        self._losses = torch.zeros(num_slots, dtype=torch.float64, device=device)
        self._listed = [0.0] * num_slots
        self._steps: list[int | None] = [None] * num_slots
        self._pending: _Pending | None = None

    def put(self, slot: int, loss: Any, step: int) -> None:
        """Keep a loss (a tensor of one element, or a number) without waiting for it."""
        if self._on_device:
            value = loss.detach() if isinstance(loss, torch.Tensor) else float(loss)
            self._losses[slot : slot + 1].copy_(value.reshape(1)) if isinstance(value, torch.Tensor) else self._losses[
                slot
            ].fill_(value)
        else:
            self._listed[slot] = float(loss)
        self._steps[slot] = step

    def collect(self, start_reduce: StartReduce | None) -> list[tuple[int, float]]:
        """Empty the slots; return (step, mean loss over the ranks) of those that have arrived, oldest first.

        A slot in which any rank had a NaN or an infinity gives NaN. `start_reduce=None` means that there is one rank.
        """
        steps, self._steps = self._steps, [None] * self.num_slots
        if not self._on_device and start_reduce is None:
            return [
                (step, loss if math.isfinite(loss) else math.nan)
                for step, loss in zip(steps, self._listed, strict=True)
                if step is not None
            ]
        arrived = self.flush()
        self._pending = self._start(steps, start_reduce)
        return arrived

    def flush(self) -> list[tuple[int, float]]:
        """Return the losses that are still on their way, after waiting for them."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        pending.wait()
        return _read(pending.host, pending.steps)

    def drop(self) -> None:
        """Forget all losses; for use after a rescale or a rollback."""
        self._steps = [None] * self.num_slots
        self._pending = None

    def _start(self, steps: list[int | None], start_reduce: StartReduce | None) -> _Pending:
        cuda = self._device.type == "cuda"
        if self._on_device:
            present = torch.tensor([step is not None for step in steps], pin_memory=cuda)
            table = _table(self._losses, present.to(self._device, non_blocking=True))
        else:
            table = _table_of_listed(self._listed, steps).to(self._device)
        work = start_reduce(table) if start_reduce is not None else None
        if self._device.type == "cpu":
            return _Pending(table, work.wait if work is not None else _no_wait, steps)
        if work is not None:
            work.wait()  # this waits only in the stream
        host = torch.empty(table.shape, dtype=table.dtype, pin_memory=cuda)
        host.copy_(table, non_blocking=cuda)
        if not cuda:
            return _Pending(host, _no_wait, steps)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record()
        return _Pending(host, copied.synchronize, steps)


def _no_wait() -> None:
    pass


def _table(losses: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return, in shape (3, num_slots), the sum of the finite losses, their number, and the number of others."""
    finite = torch.isfinite(losses) & present
    zero = torch.zeros_like(losses)
    return torch.stack(
        [torch.where(finite, losses, zero), finite.to(losses.dtype), (present & ~finite).to(losses.dtype)]
    )


def _table_of_listed(losses: list[float], steps: list[int | None]) -> torch.Tensor:
    """Return what `_table` does, for numbers on the host: one small operation of torch costs as much as all of this."""
    finite = [step is not None and math.isfinite(loss) for step, loss in zip(steps, losses, strict=True)]
    return torch.tensor(
        [
            [loss if good else 0.0 for loss, good in zip(losses, finite, strict=True)],
            [float(good) for good in finite],
            [float(step is not None and not good) for step, good in zip(steps, finite, strict=True)],
        ],
        dtype=torch.float64,
    )


def _read(table: torch.Tensor, steps: list[int | None]) -> list[tuple[int, float]]:
    """Return (step, mean loss) of the slots that any rank has filled.

    A slot that is empty on this rank may be filled on another: its step is not known here, but its loss counts (-1).
    """
    found = []
    for step, total, count, num_bad in zip(steps, *table.tolist(), strict=True):
        if num_bad or count:
            found.append((-1 if step is None else step, math.nan if num_bad else total / count))
    return found
