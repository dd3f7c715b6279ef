"""Undoes what a rolled-back step has changed: buffers that have moved (BatchNorm's running statistics), random numbers.

A snapshot is taken at each optimizer-step boundary and restored when the step after it is rolled back, so that a batch
that is drawn again neither counts twice in the statistics nor sees another dropout mask.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch


class StepSnapshot:
    """The module's buffers and the CPU's random state at the last step boundary.

    It costs one copy of the buffers per step (nothing for a model without any) and 5 KB of random state. The random
    state of CUDA devices is left out, because reading it would synchronise. Buffers are looked up anew each time:
    modules may move theirs in place, as BatchNorm does, or put a new tensor into their place.
    """

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._places: list[tuple[torch.nn.Module, str]] = []
        self._buffers: list[torch.Tensor | None] = []
        """The buffers at the last `take`, by identity."""
        self._copies: list[torch.Tensor | None] = []
        self._random: torch.Tensor | None = None

    @torch.no_grad()
    def take(self, module: torch.nn.Module) -> None:
        """Copy the buffers and the random state as they are now."""
        if self._module is not module:
            self._module, self._buffers = module, []
            self._places = [(owner, name) for owner in module.modules() for name in owner._buffers]
        buffers = self._look_up()
        if len(buffers) == len(self._buffers) and all(map(operator.is_, buffers, self._buffers)):
            _copy(buffers, self._copies)
        else:
            self._buffers = buffers
            self._copies = [None if buffer is None else buffer.clone() for buffer in buffers]
        self._random = torch.get_rng_state()

    @torch.no_grad()
    def restore(self, module: torch.nn.Module) -> None:
        """Restore the state of the last `take`; does nothing if there was none for this module."""
        if self._module is not module or self._random is None:
            return
        self.restore_buffers()
        torch.set_rng_state(self._random)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Restore the buffers alone, as they were at the last `take`, which there must have been."""
        for (owner, name), buffer in zip(self._places, self._buffers, strict=True):
            owner._buffers[name] = buffer
        _copy(self._copies, self._buffers)

    def buffers(self) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Yield name, value now and value at the last `take` of each buffer that existed then."""
        for (owner, name), before in zip(self._places, self._copies, strict=True):
            now = owner._buffers.get(name)
            if before is not None and now is not None:
                yield f"{type(owner).__name__}.{name}", now, before

    def _look_up(self) -> list[torch.Tensor | None]:
        return [owner._buffers.get(name) for owner, name in self._places]


def _copy(sources: list[torch.Tensor | None], targets: list[torch.Tensor | None]) -> None:
    pairs = [(s, t) for s, t in zip(sources, targets, strict=True) if s is not None and t is not None]
    if pairs:
        torch._foreach_copy_([target for _, target in pairs], [source for source, _ in pairs])
