"""How long planning takes for a million shards and a thousand workers, and how long a sharded epoch's division.

python benchmarks/redistribution.py [--shards 1000000] [--workers 1000] [--repeat 10]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dtf_lightning.elastic.data.redistribution import plan
from dtf_lightning.elastic.data.shards import ShardedElasticDataset, ShardedElasticSampler


class Shards(ShardedElasticDataset):
    """Nothing is loaded: only who reads what is decided."""

    def load_shard(self, shard: int) -> Any:
        raise NotImplementedError(shard)


def seconds(action: Callable[[], Any], repeat: int) -> str:
    """Median and range of wall time."""
    taken = []
    for _ in range(repeat):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return f"{statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=10)
    arguments = parser.parse_args()
    shards, workers = arguments.shards, arguments.workers
    weights = np.random.default_rng(0).uniform(1, 2, shards)
    print(
        f"{shards} shards, {workers} workers, median of {arguments.repeat}\n\n| plan | time | shards moved |\n|---|---|---|"
    )
    for name, sizes in (("equal shards", None), ("weighted shards", weights)):
        fresh = plan(shards, workers - 1, mode="full", weights=sizes)
        joined = plan(shards, workers, before=fresh.owners, weights=sizes)
        for mode, result, before in (("full", fresh, None), ("incremental, a joiner", joined, fresh.owners)):
            kind: Any = mode.split(",")[0]
            taken = seconds(
                lambda kind=kind, sizes=sizes, before=before: plan(
                    shards, workers, mode=kind, weights=sizes, before=before
                ),
                arguments.repeat,
            )
            print(f"| {mode}, {name} | {taken} | {len(result.moved)} |")
    data = Shards(np.full(shards // 100, 100))
    members = [f"m{rank}" for rank in range(workers)]
    sampler = ShardedElasticSampler(data)
    sampler.rebind(rank=0, num_replicas=workers, epoch=0, cursor=0, done_here=0)
    sampler.settle(None, members=members, in_epoch=False)
    state = sampler.state_dict()

    def rescale() -> None:
        sampler.rebind(rank=0, num_replicas=workers - 1, epoch=0, cursor=len(data) // 2, done_here=0)
        sampler.settle(state, members=members[1:], in_epoch=True)
        sampler.order()

    print(
        f"| a sharded epoch's rest divided anew, {len(data)} samples in {shards // 100} shards | "
        f"{seconds(rescale, arguments.repeat)} | |"
    )


if __name__ == "__main__":
    main()
