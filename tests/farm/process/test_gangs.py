"""A gang whose members are real processes on two workers, which find each other by what they are told."""

from __future__ import annotations

import sys

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.tokens import read_token
from support.farm.patience import patience
from support.farm.server import CoordinatorInThread, WorkerInThread

__all__ = ["patience"]

pytestmark = pytest.mark.process

SCRIPT = """
import os, sys, time
import torch
import torch.distributed as dist
rank, world = int(os.environ["DTF_FARM_RANK"]), int(os.environ["DTF_FARM_WORLD"])
dist.init_process_group("gloo", rank=rank, world_size=world)  # by MASTER_ADDR and MASTER_PORT
total = torch.tensor(float(rank + 1))
dist.all_reduce(total)
print("sum", total.item(), flush=True)
if sys.argv[1:] and rank == int(sys.argv[1]):
    os._exit(75)
if sys.argv[1:]:
    time.sleep(600)
dist.destroy_process_group()
"""


def test_its_members_meet_and_one_that_fails_ends_the_other(tmp_path):
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path)
    token = read_token(coordinator.token_file)
    workers = [WorkerInThread(coordinator.url, token, tmp_path / name, name) for name in ("a", "b")]
    try:
        with coordinator.client() as client:
            command = [sys.executable, "-c", SCRIPT]
            task = client.submit(command, gang=2)
            assert client.wait(task, 240).status == "completed", b"".join(client.logs(task))
            for rank in range(2):
                assert b"sum 3.0" in b"".join(client.logs(task, rank=rank))
            info = client.wait(client.submit([*command, "1"], gang=2), 240)
            assert (info.status, info.exit_code) == ("failed", 75)
            assert info.reason.startswith("member 1 of 2, on ")
    finally:
        for worker in workers:
            worker.close()
        coordinator.stop()
        store.close()
