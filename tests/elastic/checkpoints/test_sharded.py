"""Sharded state: saved by W ranks, loaded by any other number (forked processes, gloo)."""

from __future__ import annotations

import multiprocessing
import sys
import traceback

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.reader import latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.retention import LatestN
from dtf_lightning.elastic.checkpoints.sharded import load_sharded, save_sharded
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from dtf_lightning.errors import CheckpointDamaged

# (12, 2) and (5,): the second does not divide by the number of ranks
FULL = {"weight": torch.arange(24.0).view(12, 2), "bias": torch.arange(5.0)}


def broadcast(value):
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def sharded(mesh, scale: float) -> dict[str, DTensor]:
    return {name: distribute_tensor(tensor * scale, mesh, [Shard(0)]) for name, tensor in FULL.items()}


def save(rank: int, mesh, folder) -> None:
    writer = CheckpointFolder(LocalStorage(folder), "run", LatestN(1)) if rank == 0 else None
    for step in (1, 2):
        record = save_sharded(writer, f"step={step}", sharded(mesh, step), step=step, rank=rank, broadcast=broadcast)
        assert record is not None
        assert record.step == step


def load(rank: int, mesh, folder) -> None:
    state = sharded(mesh, 0)
    load_sharded(str(folder / "step=2"), state, rank=rank, broadcast=broadcast)
    for name, tensor in state.items():
        assert torch.equal(tensor.full_tensor(), FULL[name] * 2)


def load_damaged(rank: int, mesh, folder) -> None:
    with pytest.raises(CheckpointDamaged, match="checksum"):
        load_sharded(str(folder / "step=2"), sharded(mesh, 0), rank=rank, broadcast=broadcast)


def in_ranks(num_ranks: int, work, folder, rendezvous) -> None:
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_rank, args=(rank, num_ranks, work, folder, rendezvous)) for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * num_ranks


def _rank(rank, num_ranks, work, folder, rendezvous) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=num_ranks)
        work(rank, init_device_mesh("cpu", (num_ranks,)), folder)
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


@pytest.mark.process
def test_saved_by_two_loaded_by_one_and_three(tmp_path):
    """All files of the folder are in the manifest; the older checkpoint was pruned; damage is refused on all ranks."""
    folder = tmp_path / "checkpoints"
    in_ranks(2, save, folder, tmp_path / "rendezvous2")
    assert latest_checkpoint(folder) == str(folder / "step=2")
    assert not (folder / "step=1").exists()
    writer = CheckpointFolder(LocalStorage(folder), "run", LatestN(1))
    assert {part.path.split("/")[1] for part in writer.records[0].parts} == {
        p.name for p in (folder / "step=2").iterdir()
    }
    assert verify(writer.storage, writer.records[0]).intact
    for num_ranks in (1, 3):
        in_ranks(num_ranks, load, folder, tmp_path / f"rendezvous{num_ranks}")
    shard = next((folder / "step=2").glob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    in_ranks(2, load_damaged, folder, tmp_path / "rendezvous")
