"""What elasticity costs per step while nothing happens: ElasticCallback beside plain `DDPStrategy`, interleaved.

Two workers on this machine train the same MLP under torchrun, by turns with and without the callback; the printed
number is the median of the ratios of neighbouring runs, so that a slow minute of the machine hits both sides.

    python benchmarks/steady_state.py [--pairs 10] [--steps 300] [--model 5M]
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
WARM_UP_STEPS = 50


def step_time(mode: str, endpoint: str, number: int, steps: int, model: str) -> float:
    """Seconds per step (median) of one run of two workers."""
    rendezvous = (
        ["--rdzv-backend=etcd", f"--rdzv-endpoint={endpoint}", f"--rdzv-id=steady-{number}"]
        if mode == "elastic"
        else ["--standalone"]
    )
    with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
        run = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", *rendezvous),
                *(str(SCRIPT), "--mode", mode, "--folder", folder, "--model", model, f"--max-steps={steps}"),
            ],
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "BENCH_NODE": "x"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if run.returncode:
            raise SystemExit(f"the {mode} run failed:\n{run.stderr[-3000:]}")
        per_worker: dict[int, list[float]] = {}
        for step in StepsFile(Path(folder) / "steps" / "x.txt").read():
            if step.step > WARM_UP_STEPS:
                per_worker.setdefault(step.pid, []).append(step.at)
    times = next(iter(per_worker.values()))
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default="5M")
    arguments = parser.parse_args()
    plain, elastic = [], []
    with EmbeddedEtcd() as etcd:
        for pair in range(arguments.pairs):
            order = ("plain", "elastic") if pair % 2 == 0 else ("elastic", "plain")
            for mode in order:
                taken = step_time(mode, etcd.endpoint, pair, arguments.steps, arguments.model)
                (plain if mode == "plain" else elastic).append(taken)
            print(f"pair {pair + 1}: {elastic[-1] / plain[-1]:.3f}", file=sys.stderr, flush=True)
    ratios = [e / p for e, p in zip(elastic, plain, strict=True)]
    print(
        table(
            f"Steady state, {arguments.model}-parameter MLP, 2 workers, {len(ratios)} interleaved pairs",
            ["plain DDPStrategy, ms per step", "elastic, ms per step", "ratio, median (min to max)", "aim"],
            [
                [
                    f"{1000 * statistics.median(plain):.2f}",
                    f"{1000 * statistics.median(elastic):.2f}",
                    f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
                    "<= 1.01",
                ]
            ],
        )
    )


if __name__ == "__main__":
    main()
