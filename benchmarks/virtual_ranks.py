"""What bitwise equality costs per step: eight virtual ranks beside ways to train the same 32 samples, interleaved.

The same MLP on 1 and 2 workers of this machine, 32 samples per optimizer step: `per_rank` has a worker's share in one
batch (the fastest way), `global` in micro-batches of 4 that are accumulated, `virtual_ranks=8` one of 4 per logical rank.
The printed ratios are medians over rounds in which each way ran once.

    python benchmarks/virtual_ranks.py [--rounds 5] [--steps 120] [--model 5M] [--workers 1 2]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import StepsFile, table

from dtf_lightning.etcd.server.embedded import EmbeddedEtcd

SCRIPT = Path(__file__).with_name("train_mlp.py")
WARM_UP_STEPS = 20
SAMPLES, PART = 32, 4


def ways(num_workers: int) -> dict[str, list[str]]:
    """What the script is told."""
    return {
        "per_rank": [f"--batch-size={SAMPLES // num_workers}"],
        "global": [f"--batch-size={PART}", f"--global-batch={SAMPLES}"],
        "virtual": [f"--batch-size={PART}", f"--virtual-ranks={SAMPLES // PART}"],
    }


def step_time(arguments: list[str], endpoint: str, run_id: str, num_workers: int, steps: int) -> float:
    """Seconds per optimizer step (median) of one run."""
    with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={num_workers}"),
                *("--rdzv-backend=etcd", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={run_id}"),
                *(str(SCRIPT), "--mode=elastic", f"--folder={folder}", f"--max-steps={steps}", *arguments),
            ],
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "BENCH_NODE": "x"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if run.returncode:
            raise SystemExit(f"the run failed:\n{run.stderr[-3000:]}")
        ends: dict[tuple[int, int], float] = {}
        for step in StepsFile(Path(folder) / "steps" / "x.txt").read():
            ends[step.pid, step.step] = step.at  # of the step's last micro-batch, the others count the step before
    times = [at for (pid, step), at in sorted(ends.items()) if pid == min(ends)[0] and step > WARM_UP_STEPS]
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--model", default="5M")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    with EmbeddedEtcd() as etcd:
        for num_workers in arguments.workers:
            taken: dict[str, list[float]] = {name: [] for name in ways(num_workers)}
            for number in range(arguments.rounds):
                for name, way in ways(num_workers).items():
                    told = [*way, f"--model={arguments.model}"]
                    run_id = f"{name}-{num_workers}-{number}"
                    taken[name].append(step_time(told, etcd.endpoint, run_id, num_workers, arguments.steps))
                print(f"{num_workers} workers, round {number + 1}", file=sys.stderr, flush=True)
            row = [str(num_workers), *(f"{1000 * statistics.median(times):.1f}" for times in taken.values())]
            for other in ("global", "per_rank"):
                ratios = [v / o for v, o in zip(taken["virtual"], taken[other], strict=True)]
                row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
            rows.append(row)
    print(
        table(
            f"Virtual ranks, {arguments.model}-parameter MLP, {SAMPLES} samples per step, ms, {arguments.rounds} rounds",
            ["workers", "per_rank, one batch", "global, micro-batches of 4", "virtual_ranks=8",
             "virtual to global", "virtual to per_rank"],
            rows,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
