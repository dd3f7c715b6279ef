"""Pays for first uses alone, before a worker joins, so that the run does not wait for them.

The first DDP wrapper and the first optimizer step of a process import `torch._dynamo` and much of what hangs on it:
seconds, in which every survivor would sit in the newcomer's first all-reduce.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def warm_up() -> None:
    """Do one step of a tiny model on the process group; gradients, weights and random state stay as they are."""
    assert dist.is_initialized()
    random_state = torch.get_rng_state()
    model = torch.nn.Linear(1, 1)
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    wrapped(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    wrapped._remove_autograd_hooks()
    torch.set_rng_state(random_state)
