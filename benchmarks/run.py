"""All benchmarks, one after the other (two at once would measure each other).

python benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = [
    ("steady_state.py", [], ["--pairs", "2", "--steps", "150"]),
    ("rescale.py", [], ["--cycles", "1"]),
    ("scaling.py", [], ["--cycles", "1"]),
    ("virtual_ranks.py", [], ["--rounds", "1", "--steps", "40"]),
    ("redistribution.py", [], ["--repeat", "2"]),
    ("streams.py", [], ["--batches", "200"]),
    ("checkpoints.py", [], ["--quick"]),
    ("snapshots.py", [], ["--quick"]),
    ("results.py", [], ["--quick"]),
    ("farm_scheduler.py", [], ["--quick"]),
    ("farm.py", [], ["--quick"]),
    ("pools.py", [], []),
    ("pool.py", ["--borrowings", "50", "--seconds", "30"], ["--borrowings", "1"]),
    ("farm_peers.py", [], ["--tasks", "200", "--rounds", "1"]),
    ("farm_verdicts.py", [], ["--quick"]),
    ("restart.py", [], ["--repeat", "1"]),
    ("restart.py", ["--warm"], ["--warm", "--repeat", "1"]),
    ("quality.py", [], ["--only", "digits-sgd"]),
]
"""What runs: script, arguments, arguments that make it quick."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not to quote")
    quick = parser.parse_args().quick
    for script, arguments, quick_arguments in BENCHMARKS:
        path = Path(__file__).with_name(script)
        subprocess.run([sys.executable, str(path), *(quick_arguments if quick else arguments)], check=True)


if __name__ == "__main__":
    main()
