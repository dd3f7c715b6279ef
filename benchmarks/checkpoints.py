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
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import table

from dtf_lightning import DivergenceStopping
from dtf_lightning.elastic.checkpoints.background import BackgroundWriter
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.formats import torch_file
from dtf_lightning.elastic.checkpoints.retention import LatestN
from dtf_lightning.elastic.checkpoints.staging import StagedState, Staging
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from dtf_lightning.elastic.numerics.loss_slots import LossSlots

STATE_BYTES = 200e6
STEP = 10e-3
"""Seconds of the step that the detection's cost is set against: a small model on one GPU."""


STEPS = 5
"""So many passes take longer than a save in the background."""
FORWARD_BACKWARD = 0.1
"""Seconds of the pass beside which the rest of the copy is made: less than a model of this size needs on a CPU."""


def state() -> dict:
    """200 MB in 60 tensors: weights, exp_avg, exp_avg_sq."""
    size = int(STATE_BYTES / 60 / 4)
    return {kind: {str(index): torch.randn(size) for index in range(20)} for kind in ("weights", "first", "second")}


def calibrate() -> Callable[[], None]:
    """Work on one core that takes `FORWARD_BACKWARD`."""
    matrix = torch.randn(400, 400)
    start = time.perf_counter()
    for _ in range(50):
        matrix @ matrix
    repetitions = int(50 * FORWARD_BACKWARD / (time.perf_counter() - start))

    def work() -> None:
        for _ in range(repetitions):
            matrix @ matrix

    return work


class Stalls(NamedTuple):
    """Seconds of each save."""

    synchronous: list[float]
    at_once: list[float]
    """Asynchronous, all copied at once."""
    beside: list[float]
    """Asynchronous, copied beside the next pass: until it begins, and before the optimizer step."""
    at_once_longer: list[float]
    """By how much the steps beside such a save took longer, all told, than steps without: the writer takes part in it."""
    beside_longer: list[float]
    first: float
    num_bytes: int


def stalls(repetitions: int) -> Stalls:
    training, work = state(), calibrate()
    steady = {tensor.untyped_storage().data_ptr() for part in training.values() for tensor in part.values()}
    with tempfile.TemporaryDirectory() as path:
        folder = CheckpointFolder(LocalStorage(Path(path)), "bench", LatestN(1))
        writer, staging = BackgroundWriter(), Staging()

        def save(name: str, state: Callable[[], Any]) -> None:
            folder.save(name, {".ckpt": torch_file(state())}, step=0)

        def timed(action: Callable[[], Any]) -> float:
            start = time.perf_counter()
            action()
            return time.perf_counter() - start

        def begin(step: int, steady: Collection[int]) -> StagedState:
            writer.reserve()
            staged = staging.begin(training, steady=steady)
            writer.submit(lambda: save(f"async={step}.ckpt", staged.read))
            return staged

        found = Stalls([], [], [], [], [], timed(lambda: begin(-1, ())), staging.num_bytes)
        for step in range(repetitions):
            writer.flush()
            found.synchronous.append(timed(lambda step=step: save(f"sync={step}.ckpt", lambda: training)))
            plain = timed(lambda: [work() for _ in range(STEPS)])
            for stall, longer, unchanged in (
                (found.at_once, found.at_once_longer, ()),
                (found.beside, found.beside_longer, steady),
            ):
                start = time.perf_counter()
                staged = begin(step, unchanged)
                began = time.perf_counter() - start
                work()
                stall.append(began + timed(staged.wait))
                for _ in range(STEPS - 1):
                    work()
                longer.append(time.perf_counter() - start - plain)
                writer.flush()
        writer.flush()
        return found


def detection(num_steps: int, rank: int = 0, world_size: int = 1) -> float:
    """Seconds per step in DivergenceStopping's hooks on the CPU, between steps that compute for about 1 ms."""
    stopping = DivergenceStopping()
    stopping._slots = LossSlots(stopping.check_every, torch.device("cpu"))
    stopping._world = (0, world_size)
    trainer = SimpleNamespace(
        global_step=0, world_size=world_size, is_global_zero=rank == 0, strategy=None,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)),
    )  # fmt: skip
    losses = [torch.tensor(2.0 + 0.01 * (step % 7)) for step in range(100)]
    matrix = torch.randn(400, 400)
    spent = 0.0
    for step in range(num_steps):
        matrix @ matrix
        if world_size > 1:
            dist.all_reduce(matrix)  # the gradients: ranks are in step
            matrix.fill_(0.5)
        start = time.perf_counter()
        trainer.global_step, trainer.fit_loop.epoch_loop.total_batch_idx = step + 1, step
        stopping.on_train_batch_start(trainer)
        stopping.on_train_batch_end(trainer, None, losses[step % 100])
        spent += time.perf_counter() - start
    return spent / num_steps


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
    found = stalls(3 if quick else 15)
    whole, held = statistics.median(found.synchronous), f"{found.num_bytes / 1e6:.0f} MB"
    rows = [
        [name, f"{1e3 * stall:.0f} ms", f"{100 * stall / whole:.1f} %", f"{1e3 * longer:.0f} ms", memory]
        for name, stall, longer, memory in (
            ("synchronous", whole, whole, "0 MB"),
            ("asynchronous", statistics.median(found.beside), statistics.median(found.beside_longer), held),
            (
                "the same, copied at once",
                statistics.median(found.at_once),
                statistics.median(found.at_once_longer),
                held,
            ),
            ("the first of them", found.first, found.first, held),
        )
    ]
    names = ["save", "stall", "of a synchronous one", f"{STEPS} steps longer by", "memory held"]
    print(table("Stall of a 200 MB save (median)", names, rows))
    cost = min(detection(500 if quick else 2_000) for _ in range(3))
    costs = {"1": cost, "2": detection_of_two(500 if quick else 2_000)}
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
