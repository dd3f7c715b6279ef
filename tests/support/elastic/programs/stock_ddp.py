# ruff: noqa: T201  (its output is what the tests wait for)
"""A stock DDP script: knows torch and nothing of this package. Trains until the file named first exists.

Says who it is, then every step; checks that all ranks hold the same weights. `FAIL_AT_IMPORT` in the environment makes
it raise at once, `IGNORE_SIGTERM` makes it deaf.
"""

import os
import pathlib
import signal
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

if os.environ.get("FAIL_AT_IMPORT"):
    raise ValueError("the user's own mistake")
if os.environ.get("IGNORE_SIGTERM"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)

dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
print(f"worker pid {os.getpid()} rank {rank} of {world_size} local {os.environ['LOCAL_RANK']}", flush=True)

step, end = 0, torch.zeros(1)
while not end:
    model(torch.randn(8, 4)).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    end.fill_(float(pathlib.Path(sys.argv[1]).exists()))
    dist.all_reduce(end, dist.ReduceOp.MAX)  # all see the end at the same step
    if step == 1:
        print(f"trains: rank {rank} of {world_size}", flush=True)
weights = [torch.zeros(1, 4) for _ in range(world_size)]
dist.all_gather(weights, model.module.weight.data)
same = all(torch.equal(weights[0], other) for other in weights)
print(f"finished rank {rank} of {world_size} same weights {same}", flush=True)
dist.destroy_process_group()
