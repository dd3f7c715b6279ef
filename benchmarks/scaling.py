"""A rescale's cost grows with the state, not with the epoch or the data set: the same joins and leaves, other sizes.

python benchmarks/scaling.py [--cycles 4]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from measure import milliseconds, table
from rescale import Bench

CASES = (("tiny", 100_000), ("5M", 10_000), ("5M", 100_000), ("5M", 10_000_000), ("20M", 100_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=4)
    arguments = parser.parse_args()
    rows = []
    for model, size in CASES:
        with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
            bench = Bench(Path(folder), model)
            bench.cluster.arguments += ["--dataset-size", str(size)]
            join, leave, step = [], [], []
            with bench.cluster:
                begun = time.time()
                for name in ("a", "b"):
                    bench.start(name)
                bench.wait_for_steps(2, begun)
                for cycle in range(arguments.cycles):
                    before = time.time()
                    third = bench.start(f"c{cycle}")
                    join += [p.gap for p in bench.pauses(before)]
                    bench.wait_for_steps(3, before)
                    event = time.time()
                    bench.act("leave", third)
                    pauses = bench.pauses(event)
                    leave += [p.gap for p in pauses]
                    step += [p.step_time for p in pauses]
                    bench.wait_for_steps(2, event)
                    third.wait(60)
        rows.append([model, f"{size:,}", milliseconds(join), milliseconds(leave), milliseconds(step)])
        print(rows[-1], file=sys.stderr, flush=True)
    header = ["model", "samples in the data set", "join, ms", "leave, ms", "a step, ms"]
    print(table("Pause by size of the state and of the data; median (min to max)", header, rows))


if __name__ == "__main__":
    main()
