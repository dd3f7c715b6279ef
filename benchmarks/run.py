"""All benchmarks, one after the other (two at once would measure each other).

python benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SCRIPTS = {
    "steady_state.py": ["--pairs", "2", "--steps", "150"],
    "rescale.py": ["--cycles", "1"],
    "checkpoints.py": ["--quick"],
    "scaling.py": ["--cycles", "1"],
    "snapshots.py": ["--quick"],
    "virtual_ranks.py": ["--rounds", "1", "--steps", "40"],
    "redistribution.py": ["--repeat", "2"],
    "streams.py": ["--batches", "200"],
}
"""What runs, and the arguments that make it quick."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions: to see that it works, not to quote")
    quick = parser.parse_args().quick
    for script, arguments in SCRIPTS.items():
        path = Path(__file__).with_name(script)
        subprocess.run([sys.executable, str(path), *(arguments if quick else [])], check=True)


if __name__ == "__main__":
    main()
