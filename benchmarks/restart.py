"""Restart mode against torch's own c10d rendezvous at its best settings: event to first step of all, and the imports' share.

`python benchmarks/restart.py [--repeat N]`: one machine, real torchrun, a stock DDP script. Times are wall-clock seconds
from the event to the last remaining worker's first step in the new world. Imports are measured on the same machine in
the same run, as the time from a worker's start to the end of its imports (maximum over the workers).
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from dtf_lightning.etcd.embedded import EmbeddedEtcd

PATIENCE = 60.0
SCRIPT = """
import time
started = float(open("/proc/uptime").read().split()[0]) - int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) / 100
import os, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
imports = float(open("/proc/uptime").read().split()[0]) - int(open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]) / 100
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = 0
while True:
    model(torch.randn(8, 4)).mean().backward()
    optimizer.step()
    step += 1
    if step == 1:
        print(f"STEP {os.getpid()} {dist.get_rank()} {dist.get_world_size()} {imports:.3f}", flush=True)
    time.sleep(0.005)
"""
C10D = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=60"


class Node:
    """One torchrun. Puts (when, node, pid, world size, seconds of imports) of every first step into the queue."""

    def __init__(self, arguments: list[str], script: Path, steps: queue.Queue) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nnodes=1:4",
                "--max-restarts=100",
                *arguments,
                str(script),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        )
        self.steps = steps
        self.pids: set[int] = set()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            if found := re.search(r"STEP (\d+) \d+ (\d+) ([\d.]+)", line):
                self.pids.add(int(found[1]))
                self.steps.put((time.monotonic(), self, int(found[1]), int(found[2]), float(found[3])))

    def kill(self) -> None:
        self.process.kill()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


def wait_for_world(steps: queue.Queue, nodes: set[Node], size: int) -> tuple[float, float]:
    """(when the last of `nodes` made its first step in a world of `size`, longest imports)."""
    seen: dict[Node, tuple[float, float]] = {}
    deadline = time.monotonic() + PATIENCE
    while seen.keys() != nodes:
        when, node, _, world, imports = steps.get(timeout=max(0.1, deadline - time.monotonic()))
        if world == size and node in nodes:
            seen[node] = (when, imports)
    return max(when for when, _ in seen.values()), max(imports for _, imports in seen.values())


def measure(name: str, arguments: list[str], script: Path) -> dict[str, tuple[float, float]]:
    """Join, kill -9 of a worker, kill -9 of agent and worker, SIGTERM of an agent: (seconds, seconds of imports)."""
    steps: queue.Queue = queue.Queue()
    made: list[Node] = []

    def node() -> Node:
        made.append(Node(arguments, script, steps))
        return made[-1]

    results = {}
    try:
        a = node()
        wait_for_world(steps, {a}, 1)
        b = node()
        wait_for_world(steps, {a, b}, 2)
        before = time.monotonic()
        c = node()
        when, imports = wait_for_world(steps, {a, b, c}, 3)
        # A joiner's own start of torchrun (one more import of torch) is no part of the rescale.
        results["join"] = (when - before, 2 * imports)
        before = time.monotonic()
        os.kill(max(c.pids), signal.SIGKILL)
        when, imports = wait_for_world(steps, {a, b, c}, 3)
        results["kill -9 worker"] = (when - before, imports)
        before = time.monotonic()
        c.kill()
        when, imports = wait_for_world(steps, {a, b}, 2)
        results["kill -9 agent and worker"] = (when - before, imports)
        before = time.monotonic()
        b.process.terminate()
        when, imports = wait_for_world(steps, {a}, 1)
        results["SIGTERM agent"] = (when - before, imports)
    except queue.Empty:
        print(f"{name}: no new world within {PATIENCE:g} s", file=sys.stderr)
    finally:
        for each in made:
            each.kill()
    return results


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedEtcd() as etcd:
        script = Path(folder) / "train.py"
        script.write_text(SCRIPT)
        for number in range(repeat):
            ours = ["--rdzv-backend=etcd", f"--rdzv-endpoint={etcd.endpoint}", f"--rdzv-id=bench{number}"]
            ours.append("--rdzv-conf=mode=restart,initial_window=0.3,stability_window=0.1")
            theirs = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--rdzv-id=bench{number}"]
            theirs.append(f"--rdzv-conf={C10D}")
            for name, arguments in (("etcd restart", ours), ("c10d tuned", theirs)):
                for event, times in measure(name, arguments, script).items():
                    found.setdefault((event, name), []).append(times)
                    print(f"{name}: {event}: {times[0]:.2f} s, {times[1]:.2f} s of it imports", file=sys.stderr)
    print("| event | rendezvous | median, imports in | of it imports | without imports | runs |")
    print("|---|---|---|---|---|---|")
    for (event, name), times in sorted(found.items()):
        whole = statistics.median(total for total, _ in times)
        imports = statistics.median(imports for _, imports in times)
        without = statistics.median(total - imports for total, imports in times)
        print(f"| {event} | {name} | {whole:.2f} s | {imports:.2f} s | {without:.2f} s | {len(times)} |")


if __name__ == "__main__":
    main()
