"""What a rolled-back step must not leave behind: moved buffers (BatchNorm's running statistics) and random numbers.

Taken at each optimizer-step boundary, restored when the step after it is rolled back, so that a batch that is drawn
again neither counts twice in the statistics nor sees another dropout mask.
"""

from __future__ import annotations

import torch


class StepSnapshot:
    """The module's buffers and the CPU's random state at the last step boundary.

    Costs one copy of the buffers per step (nothing for a model without any) and 5 KB of random state. The random
    state of CUDA devices is left out: reading it would synchronise.
    """

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._buffers: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []
        self._random: torch.Tensor | None = None

    @torch.no_grad()
    def take(self, module: torch.nn.Module) -> None:
        """Remember the state now."""
        if self._module is not module:
            self._module = module
            self._buffers = list(module.buffers())
            self._copies = [buffer.clone() for buffer in self._buffers]
        elif self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)
        self._random = torch.get_rng_state()

    @torch.no_grad()
    def restore(self, module: torch.nn.Module) -> None:
        """Go back to the last `take`; does nothing if there was none for this module."""
        if self._module is not module or self._random is None:
            return
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
        torch.set_rng_state(self._random)
