"""How long it takes to look through all histories of a farm: suspects and alarms of 5,000 series of 200 points.

python benchmarks/farm_verdicts.py [--quick]
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from dtf_lightning.farm.verdicts.history.alarms import scan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few series: to see that it works, not to quote")
    num_series = 500 if parser.parse_args().quick else 5_000
    random = np.random.default_rng(0)
    costs = random.normal(0, 0.01, (num_series, 200))
    costs[::100, 120:] += 0.1
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        scanned = scan(costs)
        seconds.append(time.perf_counter() - began)
    print("| series x points | suspects | alarms | seconds (median of 5) |\n|---|---|---|---|")
    print(f"| {num_series:,} x 200 | {scanned.suspects.sum():,} | {len(scanned.alarms)} | {np.median(seconds):.2f} |")


if __name__ == "__main__":
    main()
