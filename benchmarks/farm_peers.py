"""Tasks a second of the farm beside Dask, Ray and HyperQueue: the same tasks, slots and machine, one after the other, in turns.

python benchmarks/farm_peers.py [--tasks 2000] [--rounds 3] [--environments FOLDER]

Each peer gets an environment of its own, from the package index; one that cannot be installed is skipped with the reason. What
they do is not the same: docs/benchmarks.md says what each has kept when it is killed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.task_id import new_task_id
from farm import TIMEOUT, done, farm, requests

HERE = Path(__file__).parent
PEERS = {
    "Dask": ("dask_tasks.py", ["distributed==2026.8.0"], ("noop", "true")),
    "Ray": ("ray_tasks.py", ["ray==2.60.0"], ("noop", "true")),
    "HyperQueue": ("hyperqueue_tasks.py", ["hyperqueue==0.27.0"], ("true",)),
}
"""Script, requirements, and what it can run."""
PEER_TIMEOUT = 600.0


def environment(folder: Path, name: str) -> Path:
    """Return the Python that has a peer. Raises `subprocess.CalledProcessError` where it cannot be installed."""
    place = folder / name.lower()
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        venv.create(place, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "-q", *PEERS[name][1]]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PEER_TIMEOUT)
        (place / "ready").touch()
    return python


def peer(python: Path, name: str, task: str, number: int) -> float:
    """Tasks a second of a peer, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="dtf-peer-") as folder:
        command = [str(python), str(HERE / "peers" / PEERS[name][0]), task, str(number)]
        variables = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "HOME": folder}
        ended = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PEER_TIMEOUT, cwd=folder, env=variables
        )
    return float(ended.stdout.split()[-1])


def ours(task: str, number: int) -> float:
    """Tasks a second of a farm with etcd on the disk: 4 simulated workers, or a real one with 4 slots."""
    shape: dict[str, object] = (
        {"workers": 0, "crowds": 1, "crowd_size": 4} if task == "noop" else {"workers": 1, "worker_cpus": 4.0}
    )
    with farm(members=1, coordinators=1, **shape) as started, started.client() as client:
        client.submit_all(_requests(task, 50))
        poll_until(lambda: done(started) == 50, TIMEOUT, "the first tasks")
        began = time.monotonic()
        client.submit_all(_requests(task, number))
        poll_until(lambda: done(started) == number + 50, TIMEOUT, "all tasks")
        return number / (time.monotonic() - began)


def _requests(task: str, number: int) -> list[dict]:
    if task == "noop":
        return requests(number)
    now = time.time()
    needs = [{"amounts": {"cpu": 1.0}}]
    return [{"task_id": new_task_id(now), "command": ["/bin/true"], "needs": needs} for _ in range(number)]


def systems(folder: Path) -> Mapping[str, Mapping[str, Callable[[int], float]]]:
    """What can be measured: system -> task -> tasks a second of so many."""
    found: dict[str, dict[str, Callable[[int], float]]] = {
        "the farm": {task: lambda number, task=task: ours(task, number) for task in ("noop", "true")}
    }
    for name, (_, requirements, tasks) in PEERS.items():
        try:
            python = environment(folder, name)
        except (subprocess.SubprocessError, OSError) as error:
            told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            print(f"{name} is left out: {' '.join(requirements)} cannot be installed ({told[-1] if told else error})")
            continue
        found[name] = {
            task: lambda number, python=python, name=name, task=task: peer(python, name, task, number) for task in tasks
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "dtf-peers")
    arguments = parser.parse_args()
    found = systems(arguments.environments)
    rates: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.rounds):
        for name, tasks in found.items():
            for task, measure in tasks.items():
                try:
                    rates.setdefault((name, task), []).append(measure(arguments.tasks))
                except subprocess.SubprocessError as error:
                    print(f"{name}, {task}: {error}\n{getattr(error, 'stderr', '')}", file=sys.stderr)
    print("| | no-op tasks/s | `/bin/true` tasks/s |\n|---|---|---|")
    for name in found:
        cells = [rates.get((name, task), []) for task in ("noop", "true")]
        told = [
            f"{statistics.median(cell):,.0f} ({min(cell):,.0f} to {max(cell):,.0f})" if cell else "–" for cell in cells
        ]
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
