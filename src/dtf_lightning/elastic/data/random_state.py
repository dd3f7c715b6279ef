"""Takes and restores the random generators of a process as one value."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def take_random_state() -> dict[str, Any]:
    """Return the state of torch's (CPU and every CUDA device), numpy's and Python's random generators.

    Reading the state of a CUDA device waits for the device.
    """
    on_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if on_cuda else [],
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the random numbers of the process that took `state`; CUDA devices that are not here are passed over."""
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for device, device_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(device_state, device)
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
