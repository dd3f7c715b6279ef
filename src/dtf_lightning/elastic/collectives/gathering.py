"""What each member of the process group has to say, brought together in rank order. Collectives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def gather_objects(mine: Any) -> list[Any]:
    """Return every member's object, which must be one that can be pickled."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def gather_numbers(mine: Sequence[int]) -> list[list[int]]:
    """Return every member's numbers, of which all have as many; each fits into 64 bits with its sign."""
    row = torch.tensor(mine)
    rows = [torch.empty_like(row) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, row)
    return [one.tolist() for one in rows]
