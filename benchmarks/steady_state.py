"""What elasticity costs per step while nothing happens: ElasticCallback beside plain `DDPStrategy`, interleaved.

Two workers on this machine train the same MLP under torchrun, by turns without the callback, with it, and with it and
`DivergenceStopping`; the straggler's all-gather every 5 s is part of both. Printed are the medians of the ratios of
neighbouring runs, so that a slow minute of the machine hits all sides.

    python benchmarks/steady_state.py [--pairs 10] [--steps 300] [--model 5M] [--against PYTHON]

`--against`: the Python of another environment, in which another version of this package is installed: its runs take part
in the turns, and each row is compared with theirs as well.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from measure import StepsFile, table

from dtf_lightning.etcd.server.embedded import EmbeddedEtcd

SCRIPT = Path(__file__).with_name("train_mlp.py")
WARM_UP_STEPS = 50
NAMES = {"plain": "plain DDPStrategy", "elastic": "elastic", "watched": "elastic, with DivergenceStopping"}


@dataclass(frozen=True)
class Side:
    """What takes part in the turns."""

    mode: str
    python: str

    def step_time(self, endpoint: str, number: int, steps: int, model: str) -> float:
        """Seconds per step (median) of one run of two workers."""
        rendezvous = ["--standalone"]
        if self.mode != "plain":
            rendezvous = ["--rdzv-backend=etcd", f"--rdzv-endpoint={endpoint}", f"--rdzv-id=steady-{number}"]
        mode = ["--mode", "plain" if self.mode == "plain" else "elastic"]
        if self.mode == "watched":
            mode.append("--watched")
        with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
            run = subprocess.run(
                [
                    *(self.python, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", *rendezvous),
                    *(str(SCRIPT), *mode, "--folder", folder, "--model", model, f"--max-steps={steps}"),
                ],
                check=False,
                env={**os.environ, "OMP_NUM_THREADS": "1", "BENCH_NODE": "x"},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            if run.returncode:
                raise SystemExit(f"the {self.mode} run failed:\n{run.stderr[-3000:]}")
            per_worker: dict[int, list[float]] = {}
            for step in StepsFile(Path(folder) / "steps" / "x.txt").read():
                if step.step > WARM_UP_STEPS:
                    per_worker.setdefault(step.pid, []).append(step.at)
        times = next(iter(per_worker.values()))
        return statistics.median(b - a for a, b in itertools.pairwise(times))


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--model", default="5M")
    parser.add_argument("--against", metavar="PYTHON")
    arguments = parser.parse_args()
    modes = ("elastic", "watched")
    sides = [Side("plain", sys.executable), *(Side(mode, sys.executable) for mode in modes)]
    if arguments.against:
        sides += [Side(mode, arguments.against) for mode in modes]
    taken: dict[Side, list[float]] = {side: [] for side in sides}
    order = random.Random(0)
    numbers = itertools.count()
    with EmbeddedEtcd() as etcd:
        for turn in range(arguments.pairs):
            for side in order.sample(sides, len(sides)):
                taken[side].append(side.step_time(etcd.endpoint, next(numbers), arguments.steps, arguments.model))
            now = ", ".join(f"{1000 * times[-1]:.1f}" for times in taken.values())
            print(f"turn {turn + 1}: {now} ms", file=sys.stderr, flush=True)
    plain = taken[sides[0]]

    def ratios(mode: str, base: list[float]) -> str:
        return spread([e / p for e, p in zip(taken[Side(mode, sys.executable)], base, strict=True)])

    rows = [["plain", f"{1000 * statistics.median(plain):.2f}", "1", "-"]]
    for mode in modes:
        other = taken.get(Side(mode, arguments.against), []) if arguments.against else []
        median = f"{1000 * statistics.median(taken[Side(mode, sys.executable)]):.2f}"
        rows.append([NAMES[mode], median, ratios(mode, plain), ratios(mode, other) if other else "-"])
    print(
        table(
            f"Steady state, {arguments.model}-parameter MLP, 2 workers, {arguments.pairs} turns in random order",
            ["what", "ms per step", "beside plain, median (min to max)", "beside the other version"],
            rows,
        )
    )


if __name__ == "__main__":
    main()
