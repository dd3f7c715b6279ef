"""What a test costs beyond its own time: `pytest --farm` beside pytest-xdist and pytest alone, in turns on one machine.

python benchmarks/pytest_farm.py [--tests 2000] [--rounds 3]

The same folder of empty tests, twice: few of them and many. What the many take longer, by their number, is what a test costs; what
the few take is the start. Two processes of xdist, a farm of this machine whose one worker has two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.farm.testkit.local_farm import FarmShape, LocalFarm

FEW = 50
FILES = 10
TIMEOUT = 600.0
PLUGIN = "dtf_lightning.farm.pytest_runs.plugin"
RUNNERS = {
    "pytest": [],
    "pytest-xdist -n 2": ["-p", "xdist", "-n", "2"],
    "pytest --farm": ["-p", PLUGIN, "--farm", "--farm-shards", "2"],
}


def repository(folder: Path, number: int) -> Path:
    """Return a folder with so many tests."""
    folder.mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    for file in range(FILES):
        text = "\n".join(f"def test_{one}(): pass" for one in range(number // FILES))
        (folder / f"test_{file}.py").write_text(text + "\n")
    return folder


def seconds(folder: Path, words: list[str], farm: LocalFarm) -> float:
    """Seconds of one run, from the start of its process to its end."""
    variables = {
        **os.environ,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        environment.FARM_URL: farm.url,
        environment.FARM_TOKEN_FILE: str(farm.token_file),
    }
    began = time.perf_counter()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True, timeout=TIMEOUT)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    shape = FarmShape(members=1, coordinators=1, workers=1, worker_cpus=2.0, proxied=False)
    with tempfile.TemporaryDirectory(prefix="dtf-pytest-") as text:
        folder = Path(text)
        few, many = repository(folder / "few", FEW), repository(folder / "many", arguments.tests)
        with LocalFarm(folder / "farm", shape) as farm:
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNNERS}
            for _ in range(arguments.rounds):
                for name, words in RUNNERS.items():
                    found[name].append((seconds(few, words, farm), seconds(many, words, farm)))
    print(f"load {os.getloadavg()[0]:.1f} | {FEW} tests, s | {arguments.tests} tests, s | a test, ms")
    for name, rounds in found.items():
        first, last = (statistics.median(one[place] for one in rounds) for place in (0, 1))
        print(f"{name} | {first:.2f} | {last:.2f} | {1000 * (last - first) / (arguments.tests - FEW):.2f}")


if __name__ == "__main__":
    main()
