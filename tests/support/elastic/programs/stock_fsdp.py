# ruff: noqa: T201  (its output is what the tests wait for)
"""A stock FSDP script with checkpoints of its own, kept as a Hugging Face Trainer keeps them, and nothing of ours.

`stock_fsdp.py FOLDER`: trains until it is stopped; saves `FOLDER/checkpoint-STEP` every fifth step, and goes on from the
newest one that is whole. The state is saved unsharded, so that any number of ranks can load it.
"""

import os
import pathlib
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

folder = pathlib.Path(sys.argv[1])
dist.init_process_group("gloo")
rank, world_size = dist.get_rank(), dist.get_world_size()
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
for layer in model:
    fully_shard(layer)
fully_shard(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
whole = StateDictOptions(full_state_dict=True, cpu_offload=True)


def step_of(path):
    return int(path.name.partition("-")[2])


saved = [sorted(folder.glob("checkpoint-*"), key=step_of)[-1:]]
dist.broadcast_object_list(saved)  # all load the same one
step = 0
for path in saved[0]:
    checkpoint = torch.load(path, weights_only=True)
    states = {"model_state_dict": checkpoint["model"], "optim_state_dict": checkpoint["optimizer"]}
    set_state_dict(model, optimizer, **states, options=whole)
    step = checkpoint["step"]
print(f"worker pid {os.getpid()} rank {rank} of {world_size} from step {step}", flush=True)

first = step
while True:
    model(torch.randn(8, 4)).pow(2).mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    step += 1
    if step % 5 == 0:
        model_state, optimizer_state = get_state_dict(model, optimizer, options=whole)
        if rank == 0:
            unfinished = folder / "unfinished"
            torch.save({"model": model_state, "optimizer": optimizer_state, "step": step}, unfinished)
            unfinished.rename(folder / f"checkpoint-{step}")
            for old in sorted(folder.glob("checkpoint-*"), key=step_of)[:-2]:
                old.unlink()
    if step == first + 10:
        print(f"trains: rank {rank} of {world_size} at step {step}", flush=True)
