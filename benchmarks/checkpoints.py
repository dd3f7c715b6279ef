"""What saving and watching cost the training thread.

    python benchmarks/checkpoints.py [--quick]

Stall: how long training stands still for a save of a 200 MB state (weights and Adam's moments), synchronous and
asynchronous. Detection: what DivergenceStopping's hooks cost per step, beside a step of the time given.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import table

from dtf_lightning import DivergenceStopping
from dtf_lightning.training.checkpoints.background import BackgroundWriter
from dtf_lightning.training.checkpoints.folder import CheckpointFolder
from dtf_lightning.training.checkpoints.formats import torch_file
from dtf_lightning.training.checkpoints.retention import LatestN
from dtf_lightning.training.checkpoints.staging import Staging
from dtf_lightning.training.checkpoints.storage import LocalStorage
from dtf_lightning.training.loss_slots import LossSlots

STATE_BYTES = 200e6
STEP = 10e-3
"""Seconds of the step that the detection's cost is set against: a small model on one GPU."""


def state() -> dict:
    """200 MB in 60 tensors: weights, exp_avg, exp_avg_sq."""
    size = int(STATE_BYTES / 60 / 4)
    return {kind: {str(index): torch.randn(size) for index in range(20)} for kind in ("weights", "first", "second")}


def stalls(repetitions: int) -> tuple[list[float], list[float], float, int]:
    """Seconds: synchronous, asynchronous (without the first), the first asynchronous; bytes held."""
    training = state()
    with tempfile.TemporaryDirectory() as path:
        folder = CheckpointFolder(LocalStorage(Path(path)), "bench", LatestN(1))
        synchronous = []
        for step in range(repetitions):
            start = time.perf_counter()
            folder.save(f"sync={step}.ckpt", {".ckpt": torch_file(training)}, step=step)
            synchronous.append(time.perf_counter() - start)
        writer, staging, asynchronous = BackgroundWriter(), Staging(), []
        for step in range(repetitions + 1):
            start = time.perf_counter()
            writer.reserve()
            staged = staging.copy(training)
            writer.submit(
                lambda staged=staged, step=step: folder.save(
                    f"async={step}.ckpt", {".ckpt": torch_file(staged)}, step=step
                )
            )
            asynchronous.append(time.perf_counter() - start)
            writer.flush()  # the time between two saves
        return synchronous, asynchronous[1:], asynchronous[0], staging.num_bytes


def detection(num_steps: int, rank: int = 0, world_size: int = 1) -> float:
    """Seconds per step in DivergenceStopping's hooks on the CPU; with several ranks their collective is in it."""
    stopping = DivergenceStopping()
    stopping._slots = LossSlots(stopping.check_every, torch.device("cpu"))
    stopping._world = (0, world_size)
    trainer = SimpleNamespace(
        global_step=0, world_size=world_size, is_global_zero=rank == 0, strategy=SimpleNamespace(reduce=reduce),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)),
    )  # fmt: skip
    losses = [torch.tensor(2.0 + 0.01 * (step % 7)) for step in range(100)]
    start = time.perf_counter()
    for step in range(num_steps):
        trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx = step + 1, step
        stopping.on_train_batch_start(trainer)
        stopping.on_train_batch_end(trainer, None, losses[step % 100])
    return (time.perf_counter() - start) / num_steps


def reduce(table: torch.Tensor, reduce_op: str) -> torch.Tensor:
    """As Lightning's DDP strategy does."""
    assert reduce_op == "sum"
    dist.all_reduce(table)
    return table


def detection_in_rank(rank: int, num_steps: int, store: str, results: mp.SimpleQueue) -> None:
    """One of two processes."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    cost = min(detection(num_steps, rank, world_size=2) for _ in range(3))
    if rank == 0:
        results.put(cost)
    dist.barrier()
    dist.destroy_process_group()


def detection_of_two(num_steps: int) -> float:
    """Seconds per step with two ranks over gloo."""
    results = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(detection_in_rank, (num_steps, f"{folder}/store", results), nprocs=2)
    return results.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    synchronous, asynchronous, first, held = stalls(3 if quick else 7)
    whole = statistics.median(synchronous)
    rows = [
        ["synchronous", f"{whole:.3f}", "100 %", "0 MB"],
        ["asynchronous", f"{statistics.median(asynchronous):.3f}", f"{100 * statistics.median(asynchronous) / whole:.1f} %",
         f"{held / 1e6:.0f} MB"],
        ["asynchronous, the first", f"{first:.3f}", f"{100 * first / whole:.1f} %", f"{held / 1e6:.0f} MB"],
    ]  # fmt: skip
    print(table("Stall of a 200 MB save (median)", ["save", "seconds", "of a synchronous one", "memory held"], rows))
    cost = min(detection(2_000 if quick else 20_000) for _ in range(3))
    costs = {"1": cost, "2": detection_of_two(2_000 if quick else 20_000)}
    rows = [
        [ranks, f"{1e6 * cost:.1f} us", f"{100 * cost / STEP:.2f} %", f"{cost / 0.005 * 1e3:.1f} ms"]
        for ranks, cost in costs.items()
    ]
    print(
        table(
            "DivergenceStopping", ["ranks", "per step", f"of a step of {1e3 * STEP:.0f} ms", "0.5 % of a step of"], rows
        )
    )


if __name__ == "__main__":
    main()
