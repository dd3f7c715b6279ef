"""What it costs to agree on a batch of streams: the all-reduce of their counts, on gloo ranks of this machine.

python benchmarks/streams.py [--ranks 2] [--batches 2000]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn


def rank_main(rank: int, arguments: Any, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=arguments.ranks)
    for num_streams in (16, 1024):
        taken = []
        for _ in range(arguments.batches):
            counts = torch.ones(num_streams, dtype=torch.int64)
            begin = time.perf_counter()
            dist.all_reduce(counts)
            counts.tolist()
            taken.append(time.perf_counter() - begin)
        if rank == 0:
            low, *_, high = statistics.quantiles(taken, n=20)
            print(f"| {num_streams} | {1e3 * statistics.median(taken):.3f} ({1e3 * low:.3f} to {1e3 * high:.3f}) |")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--batches", type=int, default=2000)
    arguments = parser.parse_args()
    print(f"{arguments.ranks} ranks, {arguments.batches} batches: milliseconds, median and 5th to 95th percentile\n")
    print("| streams | per batch |\n|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        spawn(rank_main, (arguments, f"{folder}/store"), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
